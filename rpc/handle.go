package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/armature-go/armature/fault"
)

// endpoint is a method whose types are erased.
type endpoint struct {
	Signature

	timeout time.Duration
	decode  func([]byte) (any, error)
	call    func(context.Context, any) (any, error)
}

// Handle makes the server answer m with h. The context that h gets carries the
// caller's deadline and its [reqctx.Request]; it is canceled when the caller
// gives up, and at the end of [Server.Stop]. An error that h returns travels to
// the caller with its code, reason and text. A panic becomes an Internal error.
//
// If m is [AtLeastOnce] and the message was a cast, an error has it delivered
// again, later, up to ServerConfig.MaxDeliveries times, or, if its code is Unavailable, which says that
// nothing was done, for ServerConfig.MaxUnavailable, unless its code says that
// this is no use: Invalid, Unauthenticated, Denied, NotFound, Conflict,
// Precondition, Unimplemented. What is given up becomes a dead letter, see
// [DeadLetters].
//
// Handle panics, because it is a programmer's error, if the method has a handler
// already, belongs to another interface, was not defined with [Define] although other methods of the interface were, has
// a name that cannot be one, or needs a newer version than the interface has, or if the server was started.
func Handle[Req, Resp any](s *Server, m Method[Req, Resp], h func(context.Context, *Req) (*Resp, error)) {
	m.check()
	if own := s.cfg.Interface; m.Interface.Name == own.Name && !own.knows(m.Name) {
		panic(fmt.Sprintf("rpc: %s.%s is not one of the interface's methods: make it with rpc.Define", own.Name, m.Name))
	}
	s.add(m.info("", ""), erase(m, h))
}

func erase[Req, Resp any](m Method[Req, Resp], h func(context.Context, *Req) (*Resp, error)) endpoint {
	return endpoint{
		Signature: m.signature(),
		timeout:   m.Timeout,
		decode: func(b []byte) (any, error) {
			req := new(Req)
			if len(b) == 0 {
				return req, nil
			}
			return req, decode(b, req)
		},
		call: func(ctx context.Context, req any) (any, error) {
			r, ok := req.(*Req)
			if !ok {
				return nil, fault.New(fault.Internal, "an interceptor passed %T, not %T", req, r)
			}
			resp, err := h(ctx, r)
			if err != nil {
				return nil, err
			}
			return resp, nil
		},
	}
}

func (s *Server) add(info Info, e endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, dup := s.methods[info.Method]
	switch {
	case s.started:
		panic(fmt.Sprintf("rpc: Handle(%s) after Start", info))
	case dup:
		panic(fmt.Sprintf("rpc: %s has two handlers", info))
	case info.Interface != s.cfg.Interface.Name:
		panic(fmt.Sprintf("rpc: %s on a server of %s", info, s.cfg.Interface.Name))
	case !s.cfg.Interface.Version.Accepts(info.Version):
		panic(fmt.Sprintf("rpc: %s since %s, but the interface has version %s", info, info.Version, s.cfg.Interface.Version))
	}
	s.methods[info.Method] = e
}
