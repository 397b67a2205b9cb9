"""A compute driver. Its servers are entries of a file.

The driver implements the required methods of compute.proto. A method that the class does not override returns Unimplemented.
"""

import json
import logging
import os
import re
import threading

from armature_compute import KIND, compute_pb2, compute_pb2_grpc
from armature_driver import Fault, driver_pb2, driver_pb2_grpc, parse_options, serve

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Driver(driver_pb2_grpc.DriverServicer, compute_pb2_grpc.ComputeServicer):
    """The driver. Its methods run in several threads at the same time."""

    def __init__(self):
        self.lock = threading.Lock()
        self.servers = {}

    # The methods of driver.proto, which all drivers have.

    def Open(self, request, context):
        options = parse_options(request.options, host="", dir="", vcpus=16)
        if not options.dir:
            raise Fault("Invalid", "option dir is not set")
        os.makedirs(options.dir, exist_ok=True)
        self.path = os.path.join(options.dir, "servers.json")
        self.vcpus = options.vcpus
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as f:
                self.servers = json.load(f)
        logging.info("opened with %d servers", len(self.servers))
        return driver_pb2.OpenResponse(kind=KIND.name)

    def Info(self, request, context):
        return driver_pb2.InfoResponse(name="apex", version="1.0")

    def Close(self, request, context):
        return driver_pb2.CloseResponse()

    # The methods of compute.proto.

    def Spawn(self, request, context):
        self.check(request.id)
        with self.lock:
            new = {"name": request.name, "resources": [request.resources.vcpus, request.resources.memory_mib, request.resources.disk_gib]}
            self.put(request.id, {**self.servers.get(request.id, new), "power": compute_pb2.POWER_STATE_RUNNING})
        return compute_pb2.SpawnResponse()

    def Destroy(self, request, context):
        self.check(request.id)
        with self.lock:
            self.put(request.id, None)
        return compute_pb2.DestroyResponse()

    def List(self, request, context):
        with self.lock:
            return compute_pb2.ListResponse(instances=[instance(id, s) for id, s in self.servers.items()])

    def Get(self, request, context):
        with self.lock:
            return compute_pb2.GetResponse(instance=instance(request.id, self.find(request.id)))

    def PowerOn(self, request, context):
        self.power(request.id, compute_pb2.POWER_STATE_RUNNING)
        return compute_pb2.PowerOnResponse()

    def PowerOff(self, request, context):
        self.power(request.id, compute_pb2.POWER_STATE_SHUTDOWN)
        return compute_pb2.PowerOffResponse()

    def Reboot(self, request, context):
        with self.lock:
            state = self.find(request.id)["power"]
        if not request.hard and state != compute_pb2.POWER_STATE_RUNNING:
            raise Fault("Precondition", f"server {request.id} does not run")
        self.power(request.id, compute_pb2.POWER_STATE_RUNNING)
        return compute_pb2.RebootResponse()

    def Resources(self, request, context):
        return compute_pb2.ResourcesResponse(resources=compute_pb2.Resources(vcpus=self.vcpus, memory_mib=32768, disk_gib=500))

    # Helpers.

    def check(self, id):
        if not UUID.fullmatch(id):
            raise Fault("Invalid", f"{id!r} is not a server's id")

    def find(self, id):
        self.check(id)
        if id not in self.servers:
            raise Fault("NotFound", f"server {id} does not exist")
        return self.servers[id]

    def power(self, id, state):
        with self.lock:
            self.put(id, {**self.find(id), "power": state})

    def put(self, id, server):
        """Stores a server, or removes the server if server is None. The file is complete at any moment."""
        servers = {**self.servers, id: server}
        if server is None:
            del servers[id]
        with open(self.path + ".new", "w", encoding="utf-8") as f:
            json.dump(servers, f)
        os.replace(self.path + ".new", self.path)
        self.servers = servers


def instance(id, s):
    vcpus, memory_mib, disk_gib = s["resources"]
    resources = compute_pb2.Resources(vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)
    return compute_pb2.Instance(id=id, name=s["name"], power=s["power"], resources=resources)


def main():
    serve(KIND, Driver())
