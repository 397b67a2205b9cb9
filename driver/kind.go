package driver

import (
	"context"
	"regexp"

	"google.golang.org/grpc"

	"github.com/armature-go/armature/driver/driverpb"
)

// Kind says how one kind of driver, whose Go interface is D, is spoken to when it
// runs as a program. A component has one, which its workers and the programs of
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
// server and client turn Go's types into messages and back, no more: errors,
// deadlines, cancellation and the request of package reqctx cross by themselves.
type Kind[D Driver] struct {
	// Name is lower-case, such as "volume": the driver acme is the program
	// armature-volume-acme.
	Name string
	// Protocol is the version of the kind's protocol that this build speaks, from
	// 1. It changes when a program built before would be misunderstood; a new
	// method, field or capability does not change it.
	Protocol int
	// Register registers the kind's services, implemented by d. It calls nothing
	// of d, which is nil when only the services' names are asked for.
	Register func(s grpc.ServiceRegistrar, d D)
	// Client returns a driver that makes its calls on c. protocol is Kind.Protocol
	// or the version before it: workers drive programs of both. Its Info and Close
	// are those of Remote(c).
	Client func(c grpc.ClientConnInterface, protocol int) D
}

var plainName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)

// check panics at what is a programmer's error.
func (k *Kind[D]) check() {
	if !plainName.MatchString(k.Name) || k.Protocol < 1 || k.Register == nil || k.Client == nil {
		panic("driver: a kind needs a lower-case name, a protocol from 1, Register and Client")
	}
}

// Remote returns, of a driver behind c, the part that all drivers have. If c is
// what a [Plugin] gave to Kind.Client, its Close ends the program as [Plugin.Close]
// does.
func Remote(c grpc.ClientConnInterface) Driver { return remote{driverpb.NewDriverClient(c), c} }

type remote struct {
	rpc  driverpb.DriverClient
	conn grpc.ClientConnInterface
}

func (r remote) Info(ctx context.Context) (Info, error) {
	resp, err := r.rpc.Info(ctx, &driverpb.InfoRequest{})
	if err != nil {
		return Info{}, err
	}
	info := Info{Name: resp.GetName(), Version: resp.GetVersion()}
	for _, c := range resp.GetCapabilities() {
		info.Capabilities = append(info.Capabilities, Capability(c))
	}
	return info, nil
}

func (r remote) Close() error {
	if l, ok := r.conn.(*link); ok {
		return l.close()
	}
	_, err := r.rpc.Close(context.Background(), &driverpb.CloseRequest{})
	return err
}
