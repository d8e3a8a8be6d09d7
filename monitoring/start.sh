#!/usr/bin/env bash
# Starts Prometheus and Grafana for a Ray head that runs on this machine: ./start.sh [FOLDER]
# Takes what is on PATH (`prometheus`, `grafana` or `grafana-server`: your distribution's or Grafana's own packages), on
# loopback alone; reach them from elsewhere through SSH: ssh -L 9090:127.0.0.1:9090 -L 3000:127.0.0.1:3000 HEAD
# Ray writes their configuration into its session's folder; FOLDER is that of the dashboards and data (default: a new one).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
session=$(readlink -f "${RAY_TMPDIR:-/tmp/ray}/session_latest")
folder=${1:-$(mktemp -d)}
test -d "$session/metrics" || { echo "error: no Ray with a dashboard runs here ($session/metrics)" >&2; exit 1; }
command -v prometheus > /dev/null || { echo "error: prometheus is not on PATH" >&2; exit 1; }

mkdir -p "$folder/dashboards"
cp "$here/grafana-dashboard.json" "$folder/dashboards/"
cp "$session"/metrics/grafana/dashboards/*.json "$folder/dashboards/" 2> /dev/null || true
{ cat "$session/metrics/prometheus/prometheus.yml"; printf '\nrule_files: ["%s/alerts.yml"]\n' "$here"; } > "$folder/prometheus.yml"
prometheus --config.file="$folder/prometheus.yml" --storage.tsdb.path="$folder/prometheus" \
  --web.listen-address=127.0.0.1:9090 > "$folder/prometheus.log" 2>&1 &
echo "Prometheus: http://127.0.0.1:9090 (process $!)"

grafana=$(command -v grafana || command -v grafana-server || true)
if [ -z "$grafana" ]; then
  echo "Grafana is not on PATH; import $folder/dashboards/grafana-dashboard.json into one that has this Prometheus"
  exit 0
fi
mkdir -p "$folder/provisioning/datasources" "$folder/provisioning/dashboards"
cat > "$folder/provisioning/datasources/prometheus.yaml" <<YAML
apiVersion: 1
datasources: [{name: Prometheus, uid: prometheus, type: prometheus, url: "http://127.0.0.1:9090", isDefault: true}]
YAML
cat > "$folder/provisioning/dashboards/dashboards.yaml" <<YAML
apiVersion: 1
providers: [{name: ray_pcasgd, options: {path: "$folder/dashboards"}}]
YAML
server=("$grafana"); [ "$(basename "$grafana")" = grafana ] && server+=(server)
GF_SERVER_HTTP_ADDR=127.0.0.1 GF_PATHS_PROVISIONING="$folder/provisioning" GF_PATHS_DATA="$folder/grafana" \
  "${server[@]}" --homepath "${GRAFANA_HOME:-/usr/share/grafana}" > "$folder/grafana.log" 2>&1 &
echo "Grafana: http://127.0.0.1:3000 (process $!)"
