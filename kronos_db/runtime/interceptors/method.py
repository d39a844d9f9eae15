"""What is known of a method before any call of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from kronos.options.v1 import options_pb2

from kronos_db.runtime.interceptors.terms import Terms
from kronos_db.runtime.reception import Lane

Kind: TypeAlias = Literal["unary", "client_stream", "server_stream", "bidi_stream"]

# What a call takes up while it lasts: a turn on a worker thread or on one for computing, a thread for as long as its
# stream lasts, or of a stream that is answered by callback memory alone.
Room: TypeAlias = Literal["call", "compute", "stream", "push"]


@dataclass(frozen=True)
class Method:
    """One method of the contract; `pushed` says that its handler answers by callback."""

    descriptor: MethodDescriptor
    pushed: bool = False
    terms: Terms = field(default_factory=Terms)

    @cached_property
    def service(self) -> str:
        """Full name of the service, for example `kronos.users.v1.UsersService`."""
        return self.descriptor.containing_service.full_name

    @cached_property
    def name(self) -> str:
        """Name within the service."""
        return self.descriptor.name

    @cached_property
    def path(self) -> str:
        """As on the wire and in the access policy: `<service>/<name>`."""
        return f"{self.service}/{self.name}"

    @cached_property
    def ours(self) -> bool:
        """Whether a domain of ours serves it; gRPC health and reflection have none."""
        return bool(self.terms.domain) or self.service.startswith("kronos.")

    @cached_property
    def domain(self) -> str:
        """The domain that serves it: `users` of `kronos.users.v1`; for services that are not ours, their package."""
        package = self.descriptor.containing_service.file.package
        return self.terms.domain or (package.split(".")[1] if self.ours else package)

    @cached_property
    def request(self) -> Descriptor:
        """Type of the request."""
        return self.descriptor.input_type

    @cached_property
    def response(self) -> Descriptor:
        """Type of the response."""
        return self.descriptor.output_type

    @cached_property
    def request_class(self) -> type[Message]:
        """Class of the request."""
        return GetMessageClass(self.request)

    @cached_property
    def kind(self) -> Kind:
        """`unary`, `client_stream`, `server_stream` or `bidi_stream`, as metrics name it."""
        kinds: dict[tuple[bool, bool], Kind] = {
            (False, False): "unary",
            (True, False): "client_stream",
            (False, True): "server_stream",
            (True, True): "bidi_stream",
        }
        streams = (self.descriptor.client_streaming, self.descriptor.server_streaming)
        return kinds[streams]

    @cached_property
    def mutating(self) -> bool:
        """Whether a call writes and is answered once per `request_id` (AIP-155)."""
        return "request_id" in self.request.fields_by_name

    @cached_property
    def audited(self) -> bool:
        """Whether a call is recorded before it runs, where its domain keeps a record: it changes or runs something."""
        options = self.descriptor.GetOptions()
        return options.idempotency_level != MethodOptions.NO_SIDE_EFFECTS or options.Extensions[options_pb2.audited]

    @cached_property
    def compute(self) -> bool:
        """Whether a call burns processor time by design and runs in the small pool for that."""
        return self.descriptor.GetOptions().Extensions[options_pb2.workload] == options_pb2.WORKLOAD_COMPUTE

    @cached_property
    def room(self) -> Room:
        """What a call takes up while it lasts."""
        if self.compute:
            return "compute"
        if self.pushed:
            return "push"
        return "call" if self.kind == "unary" else "stream"

    @cached_property
    def lane(self) -> Lane:
        """The threads that run its calls: those of writes wait for the disk, and are not to hold up reads."""
        if self.room in {"compute", "stream"}:
            return Lane(self.domain, "compute" if self.compute else "stream")
        writes = self.mutating or self.descriptor.client_streaming or bool(self.terms.domain)
        return Lane(self.domain, "write" if writes else "call")
