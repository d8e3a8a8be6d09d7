import subprocess
import sys

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.tasks.models import CustomModel, Model, Torchvision, num_parameters
from ray_pcasgd.tasks.objective import CrossEntropy

MODELS: TypeAdapter[Model] = TypeAdapter(Model)
CIFAR = (3, 32, 32)


def build(settings: object, shape: tuple[int, ...] = CIFAR, num_outputs: int = 10, seed: int = 0) -> nn.Module:
    return MODELS.validate_python(settings).build(shape, num_outputs, seed)


def two_layers(width: int, depth: int = 1) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))


@pytest.mark.parametrize(
    ("name", "published_millions", "count"),
    [
        # He et al. (CVPR 2016), table 6; He et al. (ECCV 2016) and the pre-activated code's 1.7 million;
        # Huang et al. (2017), table 2, rounds to 0.8 million. Counted by hand from the layers' shapes below.
        ("resnet-20", 0.27, 269_722),
        ("resnet-56", 0.85, 853_018),
        ("preresnet-110", 1.7, 1_727_962),
        ("densenet-bc", 0.8, 769_162),
    ],
)
def test_published_networks_have_the_published_sizes(name: str, published_millions: float, count: int) -> None:
    network = build(name)
    assert num_parameters(network) == count
    assert count / 1e6 == pytest.approx(published_millions, rel=0.04)


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet-20", 20), ("resnet-56", 56), ("preresnet-110", 110), ("densenet-bc", 100)]
)
def test_published_networks_have_their_depth(name: str, depth: int) -> None:
    """Depth counts convolutions and linear layers; option A's shortcuts have none."""
    layers = [module for module in build(name).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


def test_small_cnn_is_small() -> None:
    # 3x3 convolutions 3-32-64-64 with biases, then 64 * 4 * 4 features to 10 classes.
    assert num_parameters(build("small-cnn")) == 896 + 18_496 + 36_928 + 10_250


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet-20", {"name": "densenet-bc", "depth": 22}])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_image_models_take_gray_and_color_images(name: object, shape: tuple[int, ...]) -> None:
    assert build(name, shape, num_outputs=7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "resnet-20"])
def test_the_seed_decides_the_weights_and_nothing_else_moves(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (nn.utils.parameters_to_vector(build(name, seed=s).parameters()) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shortcut_keeps_every_second_pixel_and_adds_zero_channels() -> None:
    """With all convolutions 0 a residual network is its shortcuts alone."""
    network = build("resnet-20").eval()
    for block in network.blocks:
        nn.init.zeros_(block.norm2.weight)
    images = torch.rand(2, 16, 32, 32, generator=torch_generator(0, "test"))
    result = network.blocks(images)
    assert torch.equal(result[:, :16], images[:, :, ::4, ::4])
    assert result.shape == (2, 64, 8, 8)
    assert not result[:, 16:].any()


def test_char_lm_sees_only_what_came_before() -> None:
    network = build("char-lm", (12,), 9)
    characters = torch.randint(9, (2, 12), generator=torch_generator(0, "test"))
    changed = characters.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 9
    outputs, others = network(characters), network(changed)
    assert outputs.shape == (2, 12, 9)
    assert torch.equal(outputs[:, :7], others[:, :7])
    assert (outputs[:, 7:] != others[:, 7:]).any(-1).all()
    assert network(characters[:, :5]).shape == (2, 5, 9)


VMAPPED = [
    ("mlp", (64,), 1e-6),
    ("small-cnn", (3, 16, 16), 1e-6),
    ({"name": "small-cnn", "batch_norm": True}, (3, 16, 16), 1e-5),
    ("resnet-20", (3, 8, 8), 5e-5),
    ({"name": "densenet-bc", "depth": 16}, (3, 8, 8), 5e-5),
    ("char-lm", (6,), 1e-5),
]


@pytest.mark.parametrize(("settings", "shape", "tolerance"), VMAPPED)
def test_stacked_models_train_as_they_do_alone(settings: object, shape: tuple[int, ...], tolerance: float) -> None:
    """Gradients, losses and BatchNorm's buffers of three agents at once equal those of each by itself."""
    networks = [build(settings, shape, 5, seed) for seed in range(3)]
    random = torch_generator(0, "test")
    if settings == "char-lm":
        inputs, targets = torch.randint(5, (2, 3, 4, *shape), generator=random)
    else:
        inputs = torch.empty(3, 4, *shape).normal_(generator=random)
        targets = torch.randint(5, (3, 4), generator=random)
    parameters, buffers = stack_module_state(networks)
    before = {name: buffer.clone() for name, buffer in buffers.items()}

    def loss(own: dict[str, Tensor], own_buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, object]:
        # BatchNorm writes to its buffers in place: to copies, so that the caller's stay as they were.
        own_buffers = {name: buffer.clone() for name, buffer in own_buffers.items()}
        return CrossEntropy()(functional_call(networks[0], (own, own_buffers), (x,)), y), own_buffers

    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    gradients, (losses, after) = vmap(grad_and_value(loss, has_aux=True))(detached, buffers, inputs, targets)
    assert all(torch.equal(buffers[name], before[name]) for name in before)
    for index, network in enumerate(networks):
        alone = CrossEntropy()(network(inputs[index]), targets[index])
        alone.backward()
        torch.testing.assert_close(losses[index], alone.detach(), rtol=0, atol=tolerance)
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(gradients[name][index], parameter.grad, rtol=1e-4, atol=tolerance)
        for name, buffer in network.named_buffers():
            torch.testing.assert_close(after[name][index], buffer, rtol=1e-4, atol=tolerance)


def test_torchvision_models_are_found_by_name() -> None:
    network = Torchvision(architecture="resnet18").build((3, 32, 32), 7, 0)
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert not any(getattr(module, "inplace", False) for module in network.modules())
    with pytest.raises(ValueError, match=r"task.model.architecture = 'resnet19': allowed are alexnet, .*resnet18"):
        Torchvision(architecture="resnet19").build((3, 32, 32), 7, 0)


def test_a_users_own_network_comes_as_object_or_as_import_path() -> None:
    by_object = CustomModel(factory=two_layers, arguments={"width": 3, "depth": 2})
    assert num_parameters(by_object.build((3,), 3, 0)) == 24
    path = by_object.model_dump(mode="json")["factory"]
    assert path == f"{__name__}:two_layers"
    by_path = CustomModel(factory="torch.nn:Linear", arguments={"in_features": 4, "out_features": 2})
    first, again = (by_path.build((4,), 2, 5).weight for _ in range(2))
    assert torch.equal(first, again)


def test_bad_settings_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"'torch.nn:Linaer': the module 'torch.nn' has no attribute"):
        CustomModel(factory="torch.nn:Linaer")
    with pytest.raises(ValidationError, match="the module 'no_such_module' cannot be imported"):
        CustomModel(factory="no_such_module:f")
    with pytest.raises(ValidationError, match="allowed are import paths of the form module:attribute"):
        CustomModel(factory="torch.nn.Linear")
    with pytest.raises(ValidationError, match="allowed is something callable"):
        CustomModel(factory="math:pi")
    with pytest.raises(ValueError, match=r"task.model.factory returned dict: allowed is a torch.nn.Module"):
        CustomModel(factory=dict).build((1,), 1, 0)
    with pytest.raises(ValidationError, match="depth = 99: allowed is 4 more than a multiple of 6"):
        build({"name": "densenet-bc", "depth": 99})
    with pytest.raises(ValidationError, match="heads = 3: allowed are divisors of width = 64"):
        build({"name": "char-lm", "heads": 3})


@pytest.mark.parametrize("name", ["small-cnn", "resnet-20", "densenet-bc"])
@pytest.mark.parametrize("shape", [(64,), (3, 2, 32)])
def test_inputs_that_a_model_cannot_take_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"task.model.name = '{name}': allowed are images of at least"):
        build(name, shape)


def test_agents_need_not_import_torchvision() -> None:
    """It takes seconds, in each of their processes."""
    script = (
        "import sys; from ray_pcasgd.tasks import Task; "
        "Task.model_validate({'model': 'resnet-20'}).model.build((3, 32, 32), 10, 0); "
        "print(sorted({'torchvision', 'PIL', 'sklearn', 'pyarrow', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
