package compute

import (
	"google.golang.org/grpc"

	"github.com/armature-go/armature/driver"
	pb "github.com/armature-go/armature/examples/nova-mini/compute/computepb"
)

// Kind describes compute drivers to package driver, which runs them as programs, such as armature-compute-fake.
var Kind = driver.Kind[Driver]{
	Name:     "compute",
	Protocol: 1,
	Register: func(s grpc.ServiceRegistrar, d Driver) { pb.RegisterComputeServer(s, &server{d: d}) },
	Client: func(c grpc.ClientConnInterface, _ int) Driver {
		return &client{driver.Remote(c), pb.NewComputeClient(c)}
	},
}
