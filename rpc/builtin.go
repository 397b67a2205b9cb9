package rpc

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Methods that every server has. No other method has such a name.
const (
	methodPing     = "@ping"
	methodDescribe = "@describe"
	methodCancel   = "@cancel"
)

// Description is what a server says of itself.
type Description struct {
	Interface string
	Version   Version
	Host      string      // empty: it cannot be addressed alone
	Slots     int         // handlers that may run at once
	Methods   []Signature // that it has handlers for, by name
	Running   []Running
}

// Running is a request whose handler runs.
type Running struct {
	Method    string
	Kind      string
	RequestID string // reqctx.Request.ID
	Since     time.Time
}

func builtin(i *Interface, name string) Method[None, Description] {
	return Method[None, Description]{Interface: i, Name: name, Since: Version{Major: i.Version.Major}}
}

// Ping asks a server of the interface whether it is there, and returns how long
// the answer took. It needs a free handler slot, as every call. Errors as [Call].
func Ping(ctx context.Context, c *Client, i *Interface, host string) (time.Duration, error) {
	start := time.Now()
	_, err := Call(ctx, c, builtin(i, methodPing), host, &None{})
	return time.Since(start), err
}

// Describe returns what a server of the interface offers and does now. Errors as
// [Call].
func Describe(ctx context.Context, c *Client, i *Interface, host string) (*Description, error) {
	return Call(ctx, c, builtin(i, methodDescribe), host, &None{})
}

func (s *Server) describe() *Description {
	d := &Description{
		Interface: s.cfg.Interface.Name, Version: s.cfg.Interface.Version,
		Host: s.cfg.Host, Slots: s.cfg.MaxInFlight, Running: s.Running(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, e := range s.methods {
		if !strings.HasPrefix(name, "@") {
			d.Methods = append(d.Methods, e.Signature)
		}
	}
	slices.SortFunc(d.Methods, func(a, b Signature) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// Running lists the requests whose handlers run, the oldest first.
func (s *Server) Running() []Running {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Running, 0, len(s.running))
	for _, r := range s.running {
		list = append(list, Running{r.info.Method, r.info.Kind, r.from.ID, r.since})
	}
	slices.SortFunc(list, func(a, b Running) int { return a.Since.Compare(b.Since) })
	return list
}

// MarshalText returns the name on the wire.
func (d Delivery) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote; what it does not know is
// AtMostOnce.
func (d *Delivery) UnmarshalText(b []byte) error {
	*d = AtMostOnce
	if string(b) == AtLeastOnce.String() {
		*d = AtLeastOnce
	}
	return nil
}
