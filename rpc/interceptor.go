package rpc

import (
	"context"
	"slices"
)

// Interceptor stands around each message of a client or a server, for what
// all methods have in common: metrics, tracing, access rules. It calls next
// once, or answers itself. req is the *Req and the result the *Resp of the
// method; a cast's and a fanout's result is nil. On the client side next
// returns when the reply has come or the bus has taken the message; on the
// server side, when the handler has returned.
//
// Interceptors run in the order of the list, the first outermost. They must be
// safe for concurrent use.
type Interceptor func(ctx context.Context, info Info, req any, next func(context.Context, any) (any, error)) (any, error)

// chain is a list of interceptors as one: last is what the innermost calls. Nil calls last at once.
type chain func(ctx context.Context, info Info, req any, last func(context.Context, any) (any, error)) (any, error)

// newChain builds a chain, once for each client and server.
func newChain(list []Interceptor) chain {
	var inner chain
	for _, ic := range slices.Backward(list) {
		rest := inner
		inner = func(ctx context.Context, info Info, req any, last func(context.Context, any) (any, error)) (any, error) {
			if rest == nil {
				return ic(ctx, info, req, last)
			}
			return ic(ctx, info, req, func(ctx context.Context, req any) (any, error) { return rest(ctx, info, req, last) })
		}
	}
	return inner
}

// run calls last behind the interceptors.
func (c chain) run(ctx context.Context, info Info, req any, last func(context.Context, any) (any, error)) (any, error) {
	if c == nil {
		return last(ctx, req)
	}
	return c(ctx, info, req, last)
}
