// Package rpc lets the services of a component call each other over a message
// bus without knowing where anybody runs.
//
// Both sides import one value that says what the method is:
//
//	var Interface = &rpc.Interface{Name: "backup", Version: rpc.Version{Major: 1}}
//
//	var Start = rpc.Method[StartRequest, StartReply]{Interface: Interface, Name: "start", Since: rpc.Version{Major: 1}}
//
// The server answers it, the client has four ways to use it:
//
//	srv := rpc.NewServer(bus, rpc.ServerConfig{Interface: Interface, Host: "node-1"})
//	rpc.Handle(srv, Start, func(ctx context.Context, req *StartRequest) (*StartReply, error) { ... })
//	err := srv.Start(ctx)
//
//	client := rpc.NewClient(bus, rpc.ClientConfig{})
//	reply, err := rpc.Call(ctx, client, Start, rpc.Any, &StartRequest{...})     // wait for the result
//	pending, err := rpc.Go(ctx, client, Start, "node-1", &StartRequest{...})    // go on, take the result later
//	err = rpc.Cast(ctx, client, Start, "node-1", &StartRequest{...})            // one way, to one server
//	err = rpc.Fanout(ctx, client, Start, &StartRequest{...})                    // one way, to all servers
//
// An error that a handler returns arrives with its [fault.Code] and reason. The
// caller's deadline and its [reqctx.Request] reach the handler. What is
// promised about delivery is declared on the method, see [Delivery].
//
// A [Bus] carries the messages: membus inside one process, amqpbus over
// RabbitMQ, natsbus over NATS, watermillbus over any stock watermill pub/sub.
// Package rpctest has what tests need, and the suite that judges a bus; rpcprom
// and rpcotel have interceptors for metrics and traces. docs/messaging.md says
// what is guaranteed when what fails. The package is no broker, no service
// discovery and no stream transport.
package rpc
