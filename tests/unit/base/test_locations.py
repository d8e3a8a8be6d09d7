"""What is a key in a location, and what is none."""

import pytest

from ray_pcasgd.base.locations import without_keys


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("s3://ID:SECRET@bucket/runs", "s3://***@bucket/runs"),
        ("S3://ID:SE/CR+ET@bucket/runs?region=x", "S3://***@bucket/runs?region=x"),
        ("s3:/ID:SECRET@bucket/runs", "s3:/***@bucket/runs"),
        ("s3://ID%3ASECRET@bucket", "s3://***@bucket"),
        ("s3://ID:SECRET/runs", "s3://***/runs"),
        ("s3://ID:SE?CR#ET@bucket/runs", "s3://***@bucket/runs"),
        ("s3://bucket?endpoint_override=me:SECRET@host:9000", "s3://bucket?endpoint_override=***"),
        ("abfs://account:SECRET@container/runs", "abfs://***@container/runs"),
        ("gs://bucket/runs?access_token=SECRET&x=1", "gs://bucket/runs?access_token=***&x=1"),
        ("https://host/a?X-Amz-Signature=SECRET&secretKey=SECRET", "https://host/a?X-Amz-Signature=***&secretKey=***"),
        ("https://TOKEN@host/a", "https://***@host/a"),
        ("no such file: 's3:/ID:SECRET@a/b', 's3://ID:SECRET@c'", "no such file: 's3:/***@a/b', 's3://***@c'"),
    ],
)
def test_keys_are_masked_once_and_for_all(given: str, shown: str) -> None:
    assert without_keys(given) == shown
    assert without_keys(shown) == shown


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket/a:b@c/runs?region=eu&scheme=http&endpoint_override=127.0.0.1:9000",
        "gs://anonymous@bucket/runs?retry_limit_seconds=60",
        "abfss://container@account.dfs.core.windows.net/runs",
        "hdfs://user@host:9000/runs",
        "hf://datasets/me/data@main/train.parquet",
        "http://[::1]:8265/#page",
        "file:///folder/me:SECRET@there",
        "runs/me:own@home",
    ],
)
def test_names_ports_and_options_are_no_keys(location: str) -> None:
    assert without_keys(location) == location
