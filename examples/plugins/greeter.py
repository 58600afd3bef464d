"""A gRPC service with one method, by the stubs that protoc made of greeter.proto.

python -m grpc_tools.protoc -I . --python_out=greeter_stubs --grpc_python_out=greeter_stubs greeter.proto
"""

import sys
from pathlib import Path

from router import hookimpl
from router.serving import INFER, ServiceSpec

sys.path.append(str(Path(__file__).with_name("greeter_stubs")))  # the stubs import each other by name

from greeter_pb2 import Greeting
from greeter_pb2_grpc import GreeterServicer, add_GreeterServicer_to_server


class Greeter(GreeterServicer):
    async def Greet(self, request, call):
        return Greeting(text=f"Hello, {request.name or call.client.id or 'stranger'}!")


@hookimpl
def register_service(register):
    register(ServiceSpec(add_GreeterServicer_to_server, Greeter(), {"/example.Greeter/Greet": INFER}))
