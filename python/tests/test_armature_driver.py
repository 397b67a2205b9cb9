"""Tests of package armature_driver. The rules of drivers are tested with examples/drivers/python."""

import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib
import unittest
from concurrent import futures

import grpc

import armature_driver
from armature_driver import Fault, driver_pb2, driver_pb2_grpc, parse_options


class TestOptions(unittest.TestCase):
    def test_values(self):
        defaults = {"dir": "", "vcpus": 16, "ratio": 1.0, "fast": False}
        for raw, want in {
            "": {},
            "null": {},
            "{}": {},
            '{"dir": "/x", "vcpus": "8", "ratio": "0.5", "fast": "yes"}': {"dir": "/x", "vcpus": 8, "ratio": 0.5, "fast": True},
            '{"vcpus": 8, "ratio": 2, "fast": true}': {"vcpus": 8, "ratio": 2.0, "fast": True},
            '{"vcpus": "-1", "fast": "OFF"}': {"vcpus": -1},
        }.items():
            with self.subTest(raw):
                self.assertEqual(vars(parse_options(raw.encode(), **defaults)), {**defaults, **want})

    def test_refused(self):
        for raw, want in {
            "[1]": "the driver's options are not a JSON object",
            "{": "the driver's options are not a JSON object: ",
            '{"vcpu": "8"}': "option vcpu: no such option; the nearest is vcpus",
            '{"colour": "red"}': "option colour: no such option",
            '{"vcpus": "many"}': "option vcpus: is not an integer, or out of range",
            '{"vcpus": "1_000"}': "option vcpus: is not an integer",
            '{"vcpus": "1000000000000000000000"}': "option vcpus: is not an integer, or out of range",
            '{"vcpus": true}': "option vcpus: is not an integer",
            '{"vcpus": [1]}': "option vcpus: is neither a text nor a number nor a boolean",
            '{"vcpus": null}': "option vcpus: is neither a text nor a number nor a boolean",
            '{"ratio": "nan"}': "option ratio: is not a number",
            '{"fast": "2"}': "option fast: is not a boolean: true or false",
        }.items():
            with self.subTest(raw), self.assertRaises(Fault) as raised:
                parse_options(raw.encode(), vcpus=16, ratio=1.0, fast=False)
            self.assertIn(want, str(raised.exception))
            self.assertEqual(raised.exception.code, "Invalid")
            self.assertNotIn("many", str(raised.exception))
            if want.startswith("option"):
                self.assertEqual(raised.exception.meta, {"option": want.split()[1].rstrip(":")})

    def test_defaults(self):
        with self.assertRaisesRegex(TypeError, r"the default of option dirs is \[\]: want a str, bool, int or float"):
            parse_options(b"", dirs=[])


class Driver(driver_pb2_grpc.DriverServicer):
    def Open(self, request, context):
        logging.getLogger("test").info("opened")
        raise Fault("Unavailable", "the array is down", "ArrayDown", {"array": "a1"})

    def Info(self, request, context):
        raise RuntimeError("a bug")


class TestFault(unittest.TestCase):
    def test_code(self):
        with self.assertRaisesRegex(ValueError, "no such code: Missing; want one of Invalid, NotFound, "):
            Fault("Missing", "")

    def test_calls(self):
        """A client gets the right error for a fault, for another exception, and for a missing method. The log has the ids of the request."""
        with tempfile.TemporaryDirectory() as directory:
            server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), interceptors=(armature_driver._Calls(),))
            driver_pb2_grpc.add_DriverServicer_to_server(Driver(), server)
            server.add_insecure_port(f"unix:{directory}/s")
            server.start()
            self.addCleanup(server.stop, None)
            with grpc.insecure_channel(f"unix:{directory}/s") as channel:
                stub = driver_pb2_grpc.DriverStub(channel)
                metadata = (("armature-request-bin", b'{"request_id": "req-1", "roles": ["admin"]}'),)
                logged = io.StringIO()
                handler = logging.StreamHandler(logged)
                handler.setFormatter(armature_driver._JSONLog())
                logger = logging.getLogger("test")
                logger.setLevel(logging.INFO)
                logger.propagate = False
                logger.addHandler(handler)
                with self.assertRaises(grpc.RpcError) as raised:
                    stub.Open(driver_pb2.OpenRequest(), metadata=metadata)
                self.assertEqual(json.loads(logged.getvalue()), {"level": "INFO", "msg": "opened", "request_id": "req-1"})
                err = raised.exception
                self.assertEqual((err.code(), err.details()), (grpc.StatusCode.UNAVAILABLE, "the array is down"))
                trailer = dict(err.trailing_metadata())["armature-fault-bin"]
                self.assertEqual(json.loads(trailer), {"code": "Unavailable", "reason": "ArrayDown", "meta": {"array": "a1"}})
                with self.assertLogs("grpc", logging.ERROR), self.assertRaises(grpc.RpcError) as raised:
                    stub.Info(driver_pb2.InfoRequest())
                self.assertEqual(raised.exception.code(), grpc.StatusCode.UNKNOWN)
                with self.assertNoLogs("grpc", logging.ERROR), self.assertRaises(grpc.RpcError) as raised:
                    stub.Close(driver_pb2.CloseRequest())
                self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)


class TestPackage(unittest.TestCase):
    def test_packages(self):
        """pyproject.toml names each package."""
        root = pathlib.Path(__file__).parents[1]
        packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
        self.assertEqual(sorted(packages), sorted(p.parent.name for p in root.glob("*/__init__.py")))


class TestServe(unittest.TestCase):
    def test_by_hand(self):
        program = "import armature_compute, armature_driver; armature_driver.serve(armature_compute.KIND, None)"
        environment = {k: v for k, v in os.environ.items() if k != "ARMATURE_DRIVER"}
        got = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(got.returncode, 2)
        self.assertIn("is a compute driver, protocol 1. A worker starts it: put it into the worker's plugin_dir as armature-compute-NAME", got.stderr)


if __name__ == "__main__":
    unittest.main()
