"""The service of the contract, by its descriptor: generated stubs load the files of its messages, but not its own."""

from __future__ import annotations

from google.protobuf.descriptor import ServiceDescriptor
from kronos.admin.v1 import admin_pb2

SERVICE: ServiceDescriptor = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
