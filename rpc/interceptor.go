package rpc

import (
	"context"
	"slices"
)

// Interceptor runs around each message of a client or a server. Interceptors do what all methods have in common, such as
// metrics, tracing and access rules. An interceptor calls next once, or returns a result of its own without calling
// next. The parameter req is the method's *Req. The result of a call is its *Resp; the result of a cast or a fanout is
// nil. In a client, next returns when the reply has come or the broker has confirmed the message. In a server, next
// returns when the handler has returned.
//
// Interceptors run in the order of the list, the first outermost. They must be safe for concurrent use.
type Interceptor func(ctx context.Context, info Info, req any, next func(context.Context, any) (any, error)) (any, error)

// chain is a list of interceptors as one function. The innermost interceptor calls the parameter last. The method invoke
// also works on a nil chain.
type chain func(ctx context.Context, info Info, req any, last func(context.Context, any) (any, error)) (any, error)

// newChain returns the chain of the interceptors. Each client and server builds it once.
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

// invoke runs the interceptors around the function last. If the chain is nil, it only calls last.
func (c chain) invoke(ctx context.Context, info Info, req any, last func(context.Context, any) (any, error)) (any, error) {
	if c == nil {
		return last(ctx, req)
	}
	return c(ctx, info, req, last)
}
