"""Tests of the driver that start no process. `make test` also checks the rules of compute drivers with the program."""

import json
import tempfile
import unittest

from apex.driver import Driver
from armature_compute import compute_pb2
from armature_driver import Fault, driver_pb2

ID = "3f1c2b6e-8f5a-4f0e-9d55-0a4c1f6a7b11"


def opened(**options):
    driver = Driver()
    driver.Open(driver_pb2.OpenRequest(options=json.dumps(options).encode()), None)
    return driver


class TestDriver(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = directory.name

    def test_life(self):
        """A server is created, stopped, found after a restart, and destroyed."""
        driver = opened(host="h1", dir=self.dir)
        driver.Spawn(compute_pb2.SpawnRequest(id=ID, name="one", resources=compute_pb2.Resources(vcpus=1, memory_mib=64, disk_gib=1)), None)
        driver.PowerOff(compute_pb2.PowerOffRequest(id=ID), None)
        driver = opened(host="h1", dir=self.dir)
        server = driver.Get(compute_pb2.GetRequest(id=ID), None).instance
        self.assertEqual((server.name, server.power, server.resources.memory_mib), ("one", compute_pb2.POWER_STATE_SHUTDOWN, 64))
        for _ in range(2):
            driver.Destroy(compute_pb2.DestroyRequest(id=ID), None)
        self.assertEqual(len(driver.List(compute_pb2.ListRequest(), None).instances), 0)
        with self.assertRaises(Fault) as raised:
            driver.Get(compute_pb2.GetRequest(id=ID), None)
        self.assertEqual(raised.exception.code, "NotFound")

    def test_options(self):
        self.assertEqual(opened(dir=self.dir, vcpus="8").vcpus, 8)
        for options, text in (({}, "option dir is not set"), ({"dir": self.dir, "vcpu": "8"}, "option vcpu: no such option; the nearest is vcpus")):
            with self.assertRaisesRegex(Fault, text):
                opened(**options)


if __name__ == "__main__":
    unittest.main()
