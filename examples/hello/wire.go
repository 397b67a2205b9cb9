package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/armature-go/armature/driver"
)

// Kind describes how greeters run as programs, such as armature-hello-latin. There is no .proto file, because request and reply of
// the only method are texts.
var Kind = driver.Kind[Greeter]{
	Name: "hello", Protocol: 1,
	Register: func(s grpc.ServiceRegistrar, d Greeter) { s.RegisterService(&wire, d) },
	Client:   func(c grpc.ClientConnInterface, _ int) Greeter { return &client{driver.Remote(c), c} },
}

const greetMethod = "/hello.v1.Greeter/Greet"

var wire = grpc.ServiceDesc{ServiceName: "hello.v1.Greeter", HandlerType: (*Greeter)(nil), Methods: []grpc.MethodDesc{{
	MethodName: "Greet",
	Handler: func(srv any, ctx context.Context, read func(any) error, around grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.StringValue)
		if err := read(in); err != nil {
			return nil, err
		}
		return around(ctx, in, &grpc.UnaryServerInfo{FullMethod: greetMethod}, func(ctx context.Context, _ any) (any, error) {
			text, err := srv.(Greeter).Greet(ctx, in.GetValue())
			return wrapperspb.String(text), err
		})
	},
}}}

type client struct {
	driver.Driver

	conn grpc.ClientConnInterface
}

func (c *client) Greet(ctx context.Context, name string) (string, error) {
	out := new(wrapperspb.StringValue)
	err := c.conn.Invoke(ctx, greetMethod, wrapperspb.String(name), out)
	return out.GetValue(), err
}
