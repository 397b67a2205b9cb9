"""The contract of the compute drivers of nova-mini: compute.proto describes each method.

compute_pb2 has the messages, and compute_pb2_grpc the class ComputeServicer, from which a driver derives.
"""

from armature_compute import compute_pb2_grpc
from armature_driver import Kind

__all__ = ["KIND"]

KIND = Kind(name="compute", protocol=1, register=compute_pb2_grpc.add_ComputeServicer_to_server)
