"""Errors as OpenAI's interface writes them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from typing import Any

from mmcli.errors import MmcliError, UserError
from mmcli.generate.engine import PromptTooLong


class ApiError(Exception):
    """An answer that is not 200.

    Attributes:
        status: of HTTP.
        param: the parameter that is wrong, such as `messages[0].role`.
        code: a word for programs, such as `model_not_found`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The JSON document of the answer, or of the error event of a stream."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def type(self) -> str:
        """OpenAI's word for the status."""
        types = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return types.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


def invalid(message: str, param: str | None = None) -> ApiError:
    """400: a parameter that cannot be used."""
    return ApiError(400, message, param=param)


def of_library(error: MmcliError, param: str | None = None) -> ApiError:
    """An error of the library: 400 where the request is to blame, else 500."""
    message = f"{error.what}; {error.fix}"
    if isinstance(error, PromptTooLong):
        return ApiError(400, message, param=param, code="context_length_exceeded")
    return ApiError(400 if isinstance(error, UserError) else 500, message, param=param)


def stopping() -> ApiError:
    """503: the server is on its way out."""
    return ApiError(503, "the server is stopping", code="server_stopping", headers={"Retry-After": "5"})
