// Package rpc lets the services of a component call each other over a message bus: a caller names a host, or lets any
// server answer.
//
// Eight names are enough to begin with:
//
//	Method     what client and server agree on: one value that both import, made with Define
//	Server     answers the methods of one Interface
//	Handle     gives a method of a Server its handler
//	Client     sends requests
//	Call       waits for the result
//	Go         goes on, and takes the result later
//	Cast       sends one way, to one server
//	Fanout     sends one way, to all servers
//
// Both sides import the interface and its methods:
//
//	var Interface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
//
//	var Start = rpc.Define(rpc.Method[StartRequest, StartReply]{Interface: Interface, Name: "start", Since: rpc.Version{Major: 1}})
//
// The server has a handler for each method, or does not start:
//
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: Interface, Host: "node-1"})
//	rpc.Handle(srv, Start, func(ctx context.Context, req *StartRequest) (*StartReply, error) { ... })
//	err := srv.Start(ctx)
//
// The client has four ways to use a method:
//
//	client := rpc.NewClient(bus, rpc.ClientConfig{})
//	reply, err := rpc.Call(ctx, client, Start, rpc.Any, &StartRequest{...})
//	pending, err := rpc.Go(ctx, client, Start, "node-1", &StartRequest{...})
//	err = rpc.Cast(ctx, client, Start, "node-1", &StartRequest{...})
//	err = rpc.Fanout(ctx, client, Start, &StartRequest{...})
//
// An error that a handler returns arrives with its [fault.Code] and reason. The
// caller's deadline and its [reqctx.Request] reach the handler. The method declares what is
// promised about delivery, see [Delivery].
//
// The bus is membus inside one process, amqpbus over
// RabbitMQ, natsbus over NATS, or watermillbus over a stock watermill pub/sub; urlbus opens the one that a URL names. Authors of
// another bus implement the contract in package rpc/bus.
// Package rpctest has what tests need, and the suite that checks a bus; rpcprom
// and rpcotel have interceptors for metrics and traces. docs/messaging.md says
// what is guaranteed when what fails. The package is not a broker, a service
// discovery or a stream transport.
package rpc
