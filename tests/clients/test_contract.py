"""Servers that a test cannot easily start for real: not ready, busy for a moment, of other dims."""

import time
import weakref
from concurrent import futures

import grpc
import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from clients.errors import RequestRefused, ServerMismatch, ServerUnavailable
from clients.offers import Contract, Step
from clients.triton import TritonClient


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Speaks Triton's protocol as far as a test tells it to."""

    def __init__(
        self,
        ready=True,
        dims=(-1, 224, 224, 3),
        refusals=(),
        text="try later",
        pause_s=0,
        logits=(7,),
        extras=(),
    ):
        self.ready, self.dims, self.refusals, self.text = ready, dims, list(refusals), text
        self.calls, self.pause_s, self.logits, self.extras = 0, pause_s, logits, dict(extras)

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=self.ready)

    def ModelMetadata(self, request, context):
        self.calls += 1
        time.sleep(self.pause_s)
        if self.refusals:
            context.abort(self.refusals.pop(0), self.text)
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata
        frames = tensor(name="frames", datatype="UINT8", shape=self.dims)
        shapes = {
            **{"logits": self.logits, "probabilities": self.logits, "weights": (-1,)},
            **{"frame_logits": (-1, *self.logits), **self.extras},
        }
        outputs = [tensor(name=name, datatype="FP32", shape=dims) for name, dims in shapes.items()]
        return service_pb2.ModelMetadataResponse(name="fan", inputs=[frames], outputs=outputs)

    def ModelConfig(self, request, context):
        config = model_config_pb2.ModelConfig()
        config.ensemble_scheduling.step.add(model_name="first")
        config.ensemble_scheduling.step.add(model_name="second")
        return service_pb2.ModelConfigResponse(config=config)


@pytest.fixture
def serve(monkeypatch):
    """Serve a FakeTriton; return a client of it. Pauses between tries are as good as none."""
    monkeypatch.setattr("clients.transport.RETRY_DELAYS_S", (0.01, 0.02, 0.03))
    servers = []

    def start(fake):
        server = grpc.server(futures.ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return TritonClient(f"127.0.0.1:{port}")

    yield start
    for server in servers:
        server.stop(None)


def test_server_that_is_not_ready_is_told_apart_from_one_that_is_down(serve):
    with (
        pytest.raises(ServerUnavailable, match="is up, but its model 'fan' is not ready"),
        serve(FakeTriton(ready=False)),
    ):
        pass


@pytest.mark.parametrize("dims", [(-1, 3, 224, 224), (-1, 48, 48, 1)])
def test_other_dims_are_refused_with_both(serve, dims):
    fake = FakeTriton(dims=dims)
    with pytest.raises(ServerMismatch, match="expected an ensemble") as error, serve(fake):
        pass
    assert str(list(dims)) in str(error.value)


@pytest.mark.parametrize("logits", [[], [0], [7, 7]])
def test_other_outputs_are_refused(serve, logits):
    with (
        pytest.raises(ServerMismatch, match="expected an ensemble"),
        serve(FakeTriton(logits=logits)),
    ):
        pass


@pytest.mark.parametrize("extra", [("self_weights", [-1, 1]), ("theta", [-1, 6])])
def test_extras_of_other_dims_are_refused(serve, extra):
    with (
        pytest.raises(ServerMismatch, match=f" {extra[0]} .* expected an ensemble"),
        serve(FakeTriton(logits=(-1,), extras=[extra])),
    ):
        pass


def test_classes_that_the_dims_do_not_count_are_of_the_contract(serve):
    # The fake's models take no batch, which is asked only of what follows the contract so far.
    fake = FakeTriton(logits=(-1,), extras=[("theta", (-1, 2, 3))])
    with pytest.raises(ServerMismatch, match=r"'first' .* has max_batch_size 0"), serve(fake):
        pass


def test_unavailable_server_is_asked_again(serve):
    fake = FakeTriton(refusals=[grpc.StatusCode.UNAVAILABLE] * 2)
    # Past its two refusals the fake's contract is met, and found wanting.
    with pytest.raises(ServerMismatch), serve(fake):
        pass
    assert fake.calls == 3


def test_server_that_stays_unavailable_is_given_up(serve):
    fake = FakeTriton(refusals=[grpc.StatusCode.UNAVAILABLE] * 9)
    with pytest.raises(ServerUnavailable, match=r"4 tries .*try later"), serve(fake):
        pass
    assert fake.calls == 4


@pytest.mark.parametrize("text", ["Exceeds maximum queue size", "Request timeout expired"])
def test_server_that_is_overloaded_is_not_said_to_be_absent(serve, text):
    fake = FakeTriton(refusals=[grpc.StatusCode.UNAVAILABLE] * 9, text=text)
    with pytest.raises(ServerUnavailable, match=f"cannot serve now.*{text}"), serve(fake):
        pass


def test_server_that_hangs_is_left_when_the_time_is_up(serve):
    fake = FakeTriton(pause_s=3)
    client = serve(fake)
    client.timeout_s = 0.2
    with pytest.raises(ServerUnavailable, match=r"did not answer within 0.2 s"), client:
        pass


def test_refusal_is_not_tried_again(serve):
    fake = FakeTriton(refusals=[grpc.StatusCode.INVALID_ARGUMENT])
    with pytest.raises(RequestRefused, match="try later"), serve(fake):
        pass
    assert fake.calls == 1


def test_restricted_protocol_is_a_refusal_though_it_looks_unavailable(serve):
    text = "This protocol is restricted, expecting header 'triton-grpc-protocol-admin'"
    fake = FakeTriton(refusals=[grpc.StatusCode.UNAVAILABLE], text=text)
    with pytest.raises(RequestRefused, match="restricted"), serve(fake):
        pass
    assert fake.calls == 1


def test_pooled_features_are_held_by_their_request_alone(monkeypatch):
    tensors = {"features": np.zeros((3, 512), np.float32)}
    features = weakref.ref(tensors["features"])
    client = TritonClient("127.0.0.1:1")
    first = Step("fan_embedder", {"frames": "frames"}, {"features": "features"})
    second = Step("fan_attention", {"features": "features"}, {"logits": "logits"})
    client.contract = Contract(
        model="fan",
        versions=("1",),
        frames_step=first,
        clip_step=second,
        max_frames=128,
        labels=("happy",),
        extras=(),
    )
    held = []

    def send(call, model, inputs, **options):
        held.append(features() is not None)
        raise RequestRefused(model)

    monkeypatch.setattr(client, "retrying", send)
    with pytest.raises(RequestRefused, match="fan_attention"):
        client.pool(tensors, keep=False)
    assert held == [False]  # an hour of them is 74 MB
    client.client.close()
