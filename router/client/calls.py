"""Makes calls with the client's deadline and turns failures into ClientError."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import grpc

from router.client.channel import call_settings, request_id_of
from router.client.errors import to_client_error


class Caller:
    """Blocking calls."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout

    def unary(self, method: Callable[..., Any], request: Any, options: Mapping[str, Any]) -> Any:
        """One answer."""
        settings = call_settings(options, self._timeout)
        try:
            return method(request, **settings)
        except grpc.RpcError as error:
            raise to_client_error(error, request_id_of(settings)) from None

    def stream(self, method: Callable[..., Any], request: Any, options: Mapping[str, Any]) -> Iterator[Any]:
        """Messages as they come; the call is cancelled when the iterator is closed or dropped."""
        settings = call_settings(options, self._timeout)
        call = method(request, **settings)
        try:
            yield from call
        except grpc.RpcError as error:
            raise to_client_error(error, request_id_of(settings)) from None
        finally:
            call.cancel()


class AsyncCaller:
    """The same on the event loop."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout

    async def unary(self, method: Callable[..., Any], request: Any, options: Mapping[str, Any]) -> Any:
        """One answer."""
        settings = call_settings(options, self._timeout)
        try:
            return await method(request, **settings)
        except grpc.RpcError as error:
            raise to_client_error(error, request_id_of(settings)) from None

    async def stream(
        self, method: Callable[..., Any], request: Any, options: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """Messages as they come; the call is cancelled when the iterator is closed."""
        settings = call_settings(options, self._timeout)
        call = method(request, **settings)
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise to_client_error(error, request_id_of(settings)) from None
        finally:
            call.cancel()
