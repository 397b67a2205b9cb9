package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/armature-go/armature/fault"
)

// methodKey identifies a method of a server. Methods of two major versions may have one name.
type methodKey struct {
	major int
	name  string
}

// endpoint is a method and its handler, without their types.
type endpoint struct {
	Signature

	timeout time.Duration
	decode  func([]byte) (any, error)
	call    func(context.Context, any) (any, error)
}

// Handle makes h the server's handler of the method m. The server calls h from several goroutines
// at once. The context of h carries the caller's deadline and its [reqctx.Request]. It is canceled
// when the caller of a call gives up, and when the context of [Server.Stop] ends. An error of h
// reaches the caller of a call with its code, reason and text. A panic becomes an Internal error.
//
// If m is [AtLeastOnce] and the message is a cast, the code of the error decides what
// follows:
//
//   - Invalid, Unauthenticated, Denied, NotFound, Conflict, Precondition and
//     Unimplemented are final: the message is dead-lettered, see [DeadLetters].
//   - Unavailable says that nothing was done. The message is delivered again after a
//     back-off, for ServerConfig.MaxUnavailable in total.
//   - After any other error the message is delivered again after a back-off, up to
//     ServerConfig.MaxDeliveries attempts.
//
// After the last attempt the message is dead-lettered. The back-off doubles from 100 ms up to
// 30 s. Jitter shortens each delay at random, but not to less than half.
//
// Handle panics on a programmer's error:
//
//   - The server was started.
//   - The method has a handler already.
//   - The method belongs to another interface, has a name that is not valid, or needs a
//     version that the interface does not have.
//   - The method was not defined with [Define], although other methods of the interface
//     were.
//   - The method was defined with other types, another version or another delivery.
func Handle[Req, Resp any](s *Server, m Method[Req, Resp], h func(context.Context, *Req) (*Resp, error)) {
	m.check()
	if own := s.cfg.Interface.ofMajor(m.Since.Major); own != nil && m.Interface.Name == own.Name {
		switch defined, known := own.defined(m.Name); {
		case !known:
			panic(fmt.Sprintf("rpc: %s.%s is not a method of the interface: define it with rpc.Define", own.Name, m.Name))
		case defined != nil && *defined != m.signature():
			panic(fmt.Sprintf("rpc: %s.%s is defined as %+v, and its handler is for %+v: use the method that rpc.Define returned", own.Name, m.Name, *defined, m.signature()))
		}
	}
	s.add(m.info("", ""), eraseTypes(m, h))
}

func eraseTypes[Req, Resp any](m Method[Req, Resp], h func(context.Context, *Req) (*Resp, error)) endpoint {
	return endpoint{
		Signature: m.signature(),
		timeout:   m.Timeout,
		decode: func(b []byte) (any, error) {
			req := new(Req)
			if len(b) == 0 {
				return req, nil
			}
			return req, decodePayload(b, req)
		},
		call: func(ctx context.Context, req any) (any, error) {
			r, ok := req.(*Req)
			if !ok {
				return nil, fault.New(fault.Internal, "an interceptor passed %T, want %T", req, r)
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
	key := methodKey{info.Version.Major, info.Method}
	_, dup := s.methods[key]
	own := s.cfg.Interface.ofMajor(info.Version.Major)
	switch {
	case s.started:
		panic(fmt.Sprintf("rpc: Handle(%s) after Start", info))
	case dup:
		panic(fmt.Sprintf("rpc: %s has two handlers", info))
	case info.Interface != s.cfg.Interface.Name:
		panic(fmt.Sprintf("rpc: handler of %s on a server of %s", info, s.cfg.Interface.Name))
	case own == nil || !own.Version.Accepts(info.Version):
		panic(fmt.Sprintf("rpc: %s has Since %s, but the interface has version %s", info, info.Version, s.versionText()))
	}
	s.methods[key] = e
}
