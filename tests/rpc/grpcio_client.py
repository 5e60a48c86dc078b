"""Calls a server with grpcio and nothing but what its reflection says about itself.

If this fails, clients in other languages, and tools that know no .proto files, cannot use the
server. Usage: grpcio_client.py HOST:PORT. Needs grpcio, grpcio-reflection and protobuf.
"""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "jubal.v1.GenerationService"
HEALTH = "grpc.health.v1.Health"
TIMEOUT = 30


class Service:
    """The methods of one service, as the server describes it."""

    def __init__(self, channel, pool, name):
        self._channel = channel
        self._methods = pool.FindServiceByName(name).methods_by_name
        self._name = name

    def call(self, method, **fields):
        """The answer of a unary call; the list of answers of a streaming one."""
        descriptor = self._methods[method]
        request = message_factory.GetMessageClass(descriptor.input_type)
        response = message_factory.GetMessageClass(descriptor.output_type)
        streams = descriptor.server_streaming
        create = self._channel.unary_stream if streams else self._channel.unary_unary
        answer = create(
            f"/{self._name}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )(request(**fields), timeout=TIMEOUT)
        return list(answer) if streams else answer


def expect_equal(what, left, right):
    if left != right:
        sys.exit(f"{what}: {left!r} is not {right!r}")


def expect_same_generation(service, **fields):
    """One request, streamed and whole."""
    whole = service.call("Generate", seed=7, logprobs=True, **fields)
    messages = service.call("GenerateStream", seed=7, logprobs=True, **fields)
    expect_equal("text", "".join(m.text for m in messages), whole.text)
    expect_equal("tokens", [t for m in messages for t in m.token_ids], list(whole.token_ids))
    expect_equal("logprobs", [p for m in messages for p in m.logprobs], list(whole.logprobs))
    expect_equal("finish reason", messages[-1].finish_reason, whole.finish_reason)
    expect_equal("usage", messages[-1].usage, whole.usage)
    expect_equal("seed", messages[0].prompt_info.seed, whole.seed)
    expect_equal("completion tokens", whole.usage.completion_tokens, len(whole.token_ids))
    index = 0
    for message in messages:
        expect_equal("first index", message.first_index, index)
        index += len(message.token_ids)
    return whole


def expect_refused(service, code, **fields):
    try:
        service.call("Generate", **fields)
    except grpc.RpcError as error:
        expect_equal("status", error.code(), code)
        return
    sys.exit(f"{fields} was not refused")


def main(address):
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=TIMEOUT)
        database = ProtoReflectionDescriptorDatabase(channel)
        expect_equal("services", {SERVICE, HEALTH} - set(database.get_services()), set())
        pool = descriptor_pool.DescriptorPool(database)
        service = Service(channel, pool, SERVICE)

        health = Service(channel, pool, HEALTH)
        for name in ("", SERVICE):
            expect_equal(f"health of '{name}'", health.call("Check", service=name).status, 1)

        info = service.call("GetModelInfo")
        ids = [info.vocabulary_size - 1, 0]
        if info.has_tokenizer:
            tokens = service.call("Tokenize", text="hello world")
            text = service.call("Detokenize", token_ids=tokens.token_ids)
            expect_equal("text after a round trip", text.text, "hello world")
            ids = list(tokens.token_ids)
            whole = expect_same_generation(service, text="hello world", max_tokens=16)
            expect_equal("prompt tokens", whole.usage.prompt_tokens, len(ids))
        whole = expect_same_generation(service, token_ids={"ids": ids}, max_tokens=16)
        expect_equal("prompt tokens", whole.usage.prompt_tokens, len(ids))

        wrong = {"ids": [info.vocabulary_size]}
        expect_refused(service, grpc.StatusCode.INVALID_ARGUMENT, token_ids=wrong)
        expect_refused(service, grpc.StatusCode.INVALID_ARGUMENT)
        expect_refused(service, grpc.StatusCode.NOT_FOUND, model="another", token_ids={"ids": ids})
    print(f"{info.name} at {address}: as described")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
