package rpc

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Methods that every server has. The @ keeps their names apart from those of other methods.
const (
	methodPing     = "@ping"
	methodDescribe = "@describe"
	methodCancel   = "@cancel"
)

// Description is the answer of a server to [Describe].
type Description struct {
	Interface string
	Version   Version
	Host      string      // empty: the server has no name of its own
	Slots     int         // how many handlers may run at once
	Methods   []Signature // the methods that have a handler, sorted by name; without the Go types
	Running   []Running   // the oldest first
}

// Running is a request whose handler runs now.
type Running struct {
	Method    string
	Kind      string    // as Info.Kind
	RequestID string    // reqctx.Request.ID
	Since     time.Time // in the server's clock
}

func builtinMethod(i *Interface, name string) Method[None, Description] {
	return Method[None, Description]{Interface: i, Name: name, Since: Version{Major: i.Version.Major}}
}

// Describe returns the description of a server of the interface. The version and the methods are those of i's major version; the running
// requests are those of all versions. The server needs a free handler slot to answer, as for every call. Errors: those of [Call].
func Describe(ctx context.Context, c *Client, i *Interface, host string) (*Description, error) {
	return Call(ctx, c, builtinMethod(i, methodDescribe), host, &None{})
}

// describe describes one major version of the server's interface.
func (s *Server) describe(i *Interface) *Description {
	d := &Description{
		Interface: i.Name, Version: i.Version,
		Host: s.cfg.Host, Slots: s.cfg.MaxInFlight, Running: s.listRunning(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, e := range s.methods {
		if key.major == i.Version.Major && !strings.HasPrefix(key.name, "@") {
			d.Methods = append(d.Methods, e.Signature)
		}
	}
	slices.SortFunc(d.Methods, func(a, b Signature) int { return strings.Compare(a.Name, b.Name) })
	return d
}

// listRunning lists the requests whose handlers run now, the oldest first.
func (s *Server) listRunning() []Running {
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

// UnmarshalText reads what MarshalText wrote. Any other text becomes AtMostOnce. UnmarshalText never fails.
func (d *Delivery) UnmarshalText(b []byte) error {
	*d = AtMostOnce
	if string(b) == AtLeastOnce.String() {
		*d = AtLeastOnce
	}
	return nil
}
