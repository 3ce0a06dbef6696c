"""A gRPC client generated from our .proto files, with reflection and health. Prints one JSON object: the texts it got."""

import importlib
import json
import os
import subprocess
import sys
import tempfile

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVER, PROTO, QUESTION, SLOW = (os.environ[name] for name in ("GRPC_SERVER", "PROTO", "QUESTION", "SLOW_GRPC"))

generated = tempfile.mkdtemp()
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_out={generated}",
     f"--grpc_python_out={generated}", "cascadia/v1/inference.proto"],
    check=True,
)  # fmt: skip
sys.path.insert(0, generated)
pb2 = importlib.import_module("cascadia.v1.inference_pb2")
stubs = importlib.import_module("cascadia.v1.inference_pb2_grpc")

channel = grpc.insecure_channel(SERVER)
inference = stubs.InferenceStub(channel)

# Reflection tells what the .proto files say.
reflected = ProtoReflectionDescriptorDatabase(channel)
assert "cascadia.v1.Inference" in reflected.get_services(), reflected.get_services()
descriptor = reflected.FindFileContainingSymbol("cascadia.v1.GenerateRequest")
fields = {message.name: [field.name for field in message.field] for message in descriptor.message_type}
assert fields["GenerateRequest"] == [field.name for field in pb2.GenerateRequest.DESCRIPTOR.fields]

health = health_pb2_grpc.HealthStub(channel)
for service in ("", "cascadia.v1.Inference"):
    status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status
    assert status == health_pb2.HealthCheckResponse.SERVING, (service, status)

assert [model.name for model in inference.ListModels(pb2.ListModelsRequest(), timeout=60).models] == ["demo"]


def request(**more):
    prompt = pb2.Prompt(messages=pb2.Messages(messages=[pb2.Message(role="user", content=QUESTION)]))
    parameters = pb2.Parameters(temperature=0.8, seed=11, max_tokens=60)
    return pb2.GenerateRequest(**{"model": "demo", "prompt": prompt, "parameters": parameters, **more})


def text(asked):
    events = list(inference.Generate(asked, timeout=60))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "finished" and set(kinds[1:-1]) == {"tokens"}, kinds
    speculation = events[-1].finished.speculation
    assert sum(outcome.blocks for outcome in speculation.outcomes) == speculation.blocks > 0
    return "".join(event.tokens.text for event in events)


def refused(code, call):
    try:
        list(call())
    except grpc.RpcError as error:
        assert error.code() == code and error.details(), error
        return
    raise AssertionError(f"{code} was expected")


refused(grpc.StatusCode.NOT_FOUND, lambda: inference.Generate(request(model="gpt-4"), timeout=60))
refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: inference.Generate(request(prompt=pb2.Prompt()), timeout=60))

# A call that is cancelled ends at the nodes; the driver looks there.
slow = stubs.InferenceStub(grpc.insecure_channel(SLOW))
call = slow.Generate(request(model="synthetic", parameters=pb2.Parameters(max_tokens=3000)))
assert next(call).WhichOneof("event") == "started"
call.cancel()
refused(grpc.StatusCode.CANCELLED, lambda: call)

print(json.dumps({"text": text(request()), "second": text(request(choice=1))}))
