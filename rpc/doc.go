// Package rpc lets the services of a component call each other over a message bus. A caller names one host, or lets
// any server of the interface answer.
//
// Eight names are enough to begin with:
//
//	Method     what client and server agree on: one value that both import, made with Define
//	Server     answers the methods of one Interface
//	Handle     gives a method of a Server its handler
//	Client     sends requests
//	Call       waits for the result
//	Go         returns at once; the result comes later
//	Cast       sends to one server, without a reply
//	Fanout     sends to all servers, without a reply
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
// An error that a handler returns reaches the caller with its [fault.Code] and reason. The caller's deadline and its
// [reqctx.Request] reach the handler. The method declares whether a message may be lost or handled twice when a server
// dies, see [Delivery].
//
// Buses: membus inside one process, amqpbus over RabbitMQ, natsbus over NATS, watermillbus over a stock watermill
// pub/sub. Package urlbus opens the bus that a URL names. Authors of another bus implement the contract in package
// rpc/bus.
//
// Package rpctest has helpers for tests, and a conformance suite for buses; rpcprom and rpcotel have interceptors for
// metrics and traces. docs/messaging.md has the guarantees for each failure. The package is neither a broker nor
// service discovery, and it transports no streams.
package rpc
