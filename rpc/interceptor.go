package rpc

import (
	"context"
	"slices"
)

// Interceptor stands around every message of a client or a server, for what
// all methods have in common: metrics, tracing, access rules. It calls next
// once, or answers itself. req is the *Req and the result the *Resp of the
// method; a cast's and a fanout's result is nil. On the client side next
// returns when the reply came or the message was taken by the bus; on the
// server side, when the handler returned.
//
// Interceptors run in the order of the list, the first outermost. They must be
// safe for concurrent use.
type Interceptor func(ctx context.Context, info Info, req any, next func(context.Context, any) (any, error)) (any, error)

func chain(list []Interceptor, info Info, last func(context.Context, any) (any, error)) func(context.Context, any) (any, error) {
	for _, ic := range slices.Backward(list) {
		next := last
		last = func(ctx context.Context, req any) (any, error) { return ic(ctx, info, req, next) }
	}
	return last
}
