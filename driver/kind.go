package driver

import (
	"context"
	"regexp"

	"google.golang.org/grpc"

	"github.com/armature-go/armature/driver/driverpb"
)

// Kind describes a kind of driver: its Go interface D, and how a worker calls a driver that is
// a program. A component has one Kind, which its workers and the programs of
// vendors share:
//
//	var Kind = driver.Kind[Driver]{
//		Name: "volume", Protocol: 1,
//		Register: func(s grpc.ServiceRegistrar, d Driver) { volumepb.RegisterVolumeServer(s, &server{d: d}) },
//		Client: func(c grpc.ClientConnInterface, _ int) Driver {
//			return &client{driver.Remote(c), volumepb.NewVolumeClient(c)}
//		},
//	}
//
// server and client only convert between Go's types and messages. Package driver itself transfers errors, deadlines,
// cancellation and the request of package reqctx.
type Kind[D Driver] struct {
	// Name is the kind's name in lower case, such as "volume". The program of its driver acme is
	// armature-volume-acme.
	Name string
	// Protocol is the version of the kind's protocol in this build, from
	// 1. Increase it when older programs would misunderstand the worker. A new
	// method, field or capability needs no new version.
	Protocol int
	// Register registers the kind's services, implemented by d. It must call no method
	// of d, because d is nil if only the services' names are needed.
	Register func(s grpc.ServiceRegistrar, d D)
	// Client returns a driver that makes its calls on c. The parameter protocol is that of the program: Kind.Protocol
	// or the previous version, because workers can use programs of both. Info and Close of the driver
	// must be those of Remote(c).
	Client func(c grpc.ClientConnInterface, protocol int) D

	complete func(D) (D, error) // completes a driver that was opened; nil: it is complete
}

// opened completes d, which the driver's open function has returned with err. It returns err if the open function has
// failed.
func (k *Kind[D]) opened(d D, err error) (D, error) {
	if err != nil || k.complete == nil {
		return d, err
	}
	return k.complete(d)
}

var plainName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)

// check panics if a field is missing or wrong, which is a programmer's error.
func (k *Kind[D]) check() {
	if !plainName.MatchString(k.Name) || k.Protocol < 1 || k.Register == nil || k.Client == nil {
		panic("driver: a Kind needs a Name in lower case, a Protocol of 1 or more, Register and Client")
	}
}

// Remote returns a client of the driver behind c. The client has only the methods of [Driver]. If c is the connection that a
// [Plugin] has given to Kind.Client, Close also ends the program, as [Plugin.Close] does.
func Remote(c grpc.ClientConnInterface) Driver { return remote{driverpb.NewDriverClient(c), c} }

// remote calls the service of driver.proto.
type remote struct {
	rpc  driverpb.DriverClient
	conn grpc.ClientConnInterface
}

// Info implements [Driver].
func (r remote) Info(ctx context.Context) (Info, error) {
	resp, err := r.rpc.Info(ctx, &driverpb.InfoRequest{})
	if err != nil {
		return Info{}, err
	}
	info := Info{Name: resp.GetName(), Version: resp.GetVersion(), Concurrent: resp.GetConcurrent()}
	for _, c := range resp.GetCapabilities() {
		info.Capabilities = append(info.Capabilities, Capability(c))
	}
	return info, nil
}

// Close implements [Driver]. On the connection of a Plugin, a view, it also ends the program.
func (r remote) Close() error {
	if l, ok := r.conn.(*view); ok {
		return l.close()
	}
	_, err := r.rpc.Close(context.Background(), &driverpb.CloseRequest{})
	return err
}
