"""Drivers of Armature's components: programs that a worker starts and calls over gRPC.

A driver is a class with the methods of two gRPC services, that of driver.proto and that of its kind:

    class Driver(driver_pb2_grpc.DriverServicer, compute_pb2_grpc.ComputeServicer):
        def Open(self, request, context):
            self.options = parse_options(request.options, host="", dir="", vcpus=16)
            return driver_pb2.OpenResponse(kind=KIND.name)

    if __name__ == "__main__":
        serve(KIND, Driver())

A method that the class does not override fails with Unimplemented. A method returns an error by raising a Fault. For any
other exception the worker gets the code Internal, and the exception is logged with its stack.

The package needs grpc, protobuf and the program openssl.
"""

import base64
import contextvars
import dataclasses
import difflib
import json
import logging
import math
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import types
import typing
from concurrent import futures

import grpc

from armature_driver import driver_pb2_grpc

__all__ = ["Fault", "Kind", "parse_options", "serve"]

# How many calls run at a time. More calls wait.
_MAX_CALLS = 64
# The maximum size of a message to the driver, in bytes.
_MAX_REQUEST = 64 << 20

_CODES = {
    "Invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "NotFound": grpc.StatusCode.NOT_FOUND,
    "Conflict": grpc.StatusCode.ALREADY_EXISTS,
    "Precondition": grpc.StatusCode.FAILED_PRECONDITION,
    "Exhausted": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "Denied": grpc.StatusCode.PERMISSION_DENIED,
    "Unimplemented": grpc.StatusCode.UNIMPLEMENTED,
    "Unavailable": grpc.StatusCode.UNAVAILABLE,
    "Timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "Internal": grpc.StatusCode.INTERNAL,
    "Unknown": grpc.StatusCode.UNKNOWN,
}


class Fault(Exception):
    """An error with a code, which decides what the worker does.

    The argument code is one of Invalid, NotFound, Conflict, Precondition, Exhausted, Denied, Unimplemented, Unavailable (certainly not
    executed; the worker may repeat the call), Timeout, Internal, Unknown (may have been executed): driver.proto explains them. The argument text
    is for people, and must have no password. The arguments reason, a stable CamelCase identifier, and meta, a dict of strings, are for programs.
    """

    def __init__(self, code, text, reason="", meta=None):
        if code not in _CODES:
            raise ValueError(f"no such code: {code}; want one of {', '.join(_CODES)}")
        super().__init__(text)
        self.code, self.reason, self.meta = code, reason, meta or {}

    def _abort(self, context):
        detail = {"code": self.code}
        if self.reason:
            detail["reason"] = self.reason
        if self.meta:
            detail["meta"] = self.meta
        context.set_trailing_metadata((("armature-fault-bin", json.dumps(detail).encode()),))
        context.abort(_CODES[self.code], str(self))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of driver: its name, the version of its protocol, and the function that registers the kind's gRPC service."""

    name: str
    protocol: int
    register: typing.Callable[[object, grpc.Server], None]


def parse_options(raw, **defaults):
    """Returns the options of a driver as an object with one attribute for each default.

    The argument raw is a JSON object or empty, such as OpenRequest.options. The names of the defaults are the options that the driver has. A value
    has the type of its default: str, bool, int or float. It may be a text, as all values of a configuration file are.

    Raises Fault with code Invalid if an option does not exist, or if a value does not have the type. So a misspelled option is never ignored. The
    text names the option, and not its value, which may be a password.
    """
    for name, default in defaults.items():
        if type(default) not in _PARSERS:
            raise TypeError(f"the default of option {name} is {default!r}: want a str, bool, int or float")
    try:
        given = json.loads(raw or b"{}")
    except ValueError as err:
        raise Fault("Invalid", f"the driver's options are not a JSON object: {err}") from err
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise Fault("Invalid", "the driver's options are not a JSON object")
    values = dict(defaults)
    for name in sorted(given):
        value = given[name]
        try:
            if name not in defaults:
                raise ValueError("no such option" + _nearest(name, defaults))
            if not isinstance(value, (str, bool, int, float)):
                raise ValueError("is neither a text nor a number nor a boolean")
            values[name] = _PARSERS[type(defaults[name])](value if isinstance(value, str) else json.dumps(value))
        except ValueError as err:
            raise Fault("Invalid", f"option {name}: {err}", meta={"option": name}) from err
    return types.SimpleNamespace(**values)


def _nearest(name, known):
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; the nearest is {similar[0]}" if similar else ""


def _parse_bool(text):
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise ValueError("is not a boolean: true or false")


def _parse_int(text):
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError("is not an integer, or out of range")
    return int(text)


def _parse_float(text):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("is not a number")
    return number


_PARSERS = {str: str, bool: _parse_bool, int: _parse_int, float: _parse_float}

# The request of a client for which the running call is made; driver.proto describes its keys.
_request = contextvars.ContextVar("request", default={})


class _Calls(grpc.ServerInterceptor):
    """Turns the faults that methods raise into gRPC statuses, and keeps the request for the log."""

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        if handler is None:
            return None
        if handler.response_streaming:
            return handler._replace(unary_stream=self._stream(handler.unary_stream))
        return handler._replace(unary_unary=self._unary(handler.unary_unary))

    def _unary(self, method):
        def call(request, context):
            with _Call(context):
                return method(request, context)

        return call

    def _stream(self, method):
        def call(request, context):
            with _Call(context):
                yield from method(request, context)

        return call


class _Call:
    """One call of a method."""

    def __init__(self, context):
        self.context = context

    def __enter__(self):
        request = {}
        for key, value in self.context.invocation_metadata():
            if key == "armature-request-bin":
                try:
                    request = json.loads(value)
                except ValueError:
                    pass  # the call does not depend on it
        _request.set(request if isinstance(request, dict) else {})

    def __exit__(self, _kind, err, _stack):
        if isinstance(err, NotImplementedError):
            err = Fault("Unimplemented", "the driver does not have this method")
        if isinstance(err, Fault):
            err._abort(self.context)


class _JSONLog(logging.Formatter):
    """Formats a record as a line of JSON, so that the worker logs it with its level and with the ids of the request."""

    def format(self, record):
        line = {"level": record.levelname, "msg": super().format(record)}
        for key in ("request_id", "global_request_id", "user_id", "project_id"):
            if value := _request.get().get(key):
                line[key] = value
        return json.dumps(line)


def serve(kind, implementation):
    """The main function of a driver's program. It serves the driver as driver.proto describes, and does not return.

    The argument implementation has the methods of driver.proto and of the kind. Up to 64 calls run at the same time, each in a thread. Records of
    package logging, and lines that the program writes to its standard error, are written to the worker's log. The program ignores SIGINT and
    SIGTERM, and ends when its standard input ends, because then the worker has ended.

    If a user starts the program by hand, it prints what it is for, and exits with status 2.
    """
    if os.environ.get("ARMATURE_DRIVER") != "1":
        program = os.path.basename(sys.argv[0])
        print(
            f"{program} is a {kind.name} driver, protocol {kind.protocol}. A worker starts it: put it into the worker's plugin_dir as "
            f"armature-{kind.name}-NAME, and write NAME as the driver in the worker's configuration.",
            file=sys.stderr,
        )
        sys.exit(2)
    _start_log()
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, lambda *_: None)

    directory = os.environ["PLUGIN_UNIX_SOCKET_DIR"]
    key, cert = _make_certificate(directory)
    worker = os.environ["PLUGIN_CLIENT_CERT"].encode()
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=_MAX_CALLS), interceptors=(_Calls(),), options=(("grpc.max_receive_message_length", _MAX_REQUEST),)
    )
    driver_pb2_grpc.add_DriverServicer_to_server(implementation, server)
    kind.register(implementation, server)
    socket = os.path.join(directory, "s")
    server.add_secure_port("unix:" + socket, grpc.ssl_server_credentials([(key, cert)], worker, require_client_auth=True))
    server.start()
    der = base64.b64encode(ssl.PEM_cert_to_DER_cert(cert.decode())).decode().rstrip("=")
    print(f"1|{kind.protocol}|unix|{socket}|grpc|{der}", flush=True)
    sys.stdin.read()  # returns when the worker has ended
    os._exit(0)


def _start_log():
    handler = logging.StreamHandler()
    handler.setFormatter(_JSONLog())
    level = os.environ.get("ARMATURE_LOG_LEVEL", "INFO").partition("+")[0].partition("-")[0]
    logging.basicConfig(level=logging.getLevelName(level) if level in ("DEBUG", "INFO", "WARN", "ERROR") else logging.INFO, handlers=[handler])


def _make_certificate(directory):
    """Returns a new key and its certificate for localhost, both in PEM form."""
    with tempfile.TemporaryDirectory(dir=directory) as tmp:
        key, cert = os.path.join(tmp, "key"), os.path.join(tmp, "cert")
        if shutil.which("openssl") is None:
            sys.exit("the program openssl is not found: install the Debian package openssl")
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", cert]
            + ["-days", "3650", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if made.returncode != 0:
            sys.exit("openssl req: " + made.stderr.decode(errors="replace"))
        with open(key, "rb") as k, open(cert, "rb") as c:
            return k.read(), c.read()
