package rpc

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc/bus"
)

// Version is the version of an interface. The major number grows when old
// clients would stop working, the minor number when something is added.
type Version struct{ Major, Minor int }

// String returns the form used on the wire, such as "1.4".
func (v Version) String() string { return strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor) }

// MarshalText returns the form of String.
func (v Version) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads the form of String. The error has code Invalid.
func (v *Version) UnmarshalText(b []byte) (err error) {
	v.Major, v.Minor, err = bus.ParseVersion(string(b))
	return err
}

// Accepts reports whether a server or a cap of version v accepts a request that needs the version need: the major numbers are equal,
// and the minor number of need is not greater than that of v. It is oslo.messaging's rule (version_is_compatible).
func (v Version) Accepts(need Version) bool { return v.Major == need.Major && need.Minor <= v.Minor }

// Versions maps the name of an interface to its versions: the highest version of each major version, in ascending order. A server
// serves such versions, see [Server.Versions], and a client may be capped at them, see ClientConfig.AutoCaps. In JSON each version is a
// text: {"backup": ["1.4", "2.0"]}.
type Versions map[string][]Version

// accepts reports whether one of the versions of the interface accepts a request that needs version need.
func (v Versions) accepts(name string, need Version) bool {
	return slices.ContainsFunc(v[name], func(have Version) bool { return have.Accepts(need) })
}

// textOf formats versions for an error or a log line.
func textOf(list []Version) string {
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = v.String()
	}
	return strings.Join(names, " and ")
}

// Interface is a named, versioned set of methods that one kind of server
// offers. [Define] adds methods to it. An Interface must not be copied. It is safe for concurrent use.
type Interface struct {
	// Name is the first part of the names of the queues, such as "backup", so it must never
	// change. It has no dots, no spaces, no control characters, and no characters that are special in a broker's
	// names: * # > /. It is not "reply". Required.
	Name string
	// Version is the newest version that this source tree implements.
	Version Version
	// Older is the interface of the same name with an earlier major version. Set it while servers serve both versions. A server of this
	// interface then needs handlers for the methods of both. Older may have an Older of its own. Both interfaces have the same topics;
	// the major version of a message chooses the method. Default nil: only this major version.
	Older *Interface

	mu      sync.Mutex
	methods map[string]Signature
}

// Signature describes a method, with its Go types if they are known.
type Signature struct {
	Name              string       // the name on the wire
	Since             Version      // the version of the interface in which the method was added
	Delivery          Delivery     // the guarantee for the method's casts
	Request, Response reflect.Type `json:"-"` // nil if the description came from another process
}

// Define adds the method to its interface and returns it. A server of the interface does not start until the method has
// a handler. Call Define for each package-level variable that holds a method:
//
//	var Start = rpc.Define(rpc.Method[StartRequest, StartReply]{Interface: Interface, Name: "start", Since: rpc.Version{Major: 1}})
//
// Define panics on a programmer's error:
//
//   - The method has no interface, or one whose name is not valid.
//   - The interface has a method of that name already.
//   - The method has no name, or its name has a space, a dot or an @.
//   - The method needs a version that the interface does not have.
func Define[Req, Resp any](m Method[Req, Resp]) Method[Req, Resp] {
	i := m.Interface
	m.check()
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, dup := i.methods[m.Name]; dup {
		panic(fmt.Sprintf("rpc: %s.%s is defined twice", i.Name, m.Name))
	}
	if i.methods == nil {
		i.methods = make(map[string]Signature)
	}
	i.methods[m.Name] = m.signature()
	return m
}

// Methods lists the methods that [Define] has added, sorted by name. Within a major version, methods must not be
// removed or changed; rpctest.Contract checks that.
func (i *Interface) Methods() []Signature {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.SortedFunc(maps.Values(i.methods), func(a, b Signature) int { return strings.Compare(a.Name, b.Name) })
}

// defined returns the defined method of a name, or nil. The result known reports whether a server of the interface may have a handler
// for the name. If the interface has no defined methods, every name is known.
func (i *Interface) defined(name string) (m *Signature, known bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	s, ok := i.methods[name]
	if !ok {
		return nil, len(i.methods) == 0
	}
	return &s, true
}

// ofMajor searches i and its older interfaces for a major version. It returns nil if none of them has it.
func (i *Interface) ofMajor(major int) *Interface {
	for ; i != nil; i = i.Older {
		if i.Version.Major == major {
			return i
		}
	}
	return nil
}

// all lists i and its older interfaces, the newest first.
func (i *Interface) all() (list []*Interface) {
	for ; i != nil; i = i.Older {
		list = append(list, i)
	}
	return list
}

// checkOlder returns Invalid if an older interface has another name, or a major version that is not lower.
func (i *Interface) checkOlder() error {
	for ; i.Older != nil; i = i.Older {
		if o := i.Older; o.Name != i.Name || o.Version.Major >= i.Version.Major {
			return fault.New(fault.Invalid, "interface %s %s has the Older %s %s: Older must have the same name and a lower major version", i.Name, i.Version, o.Name, o.Version)
		}
	}
	return nil
}

// isLowest reports whether v is the lowest version of the oldest major version. Every server of the interface accepts this version,
// even a server of the earliest release with the interface.
func (i *Interface) isLowest(v Version) bool { return i.Older == nil && v.Minor == 0 }

// Any is the host of a message that any server of the interface may handle:
// the first server with a free slot gets it.
const Any = ""

// None is the type of a request or a response without content.
type None = struct{}

// Delivery says whether a message may be lost or handled twice when a server dies.
type Delivery uint8

const (
	// AtMostOnce means that the message is acknowledged as soon as it has a handler
	// slot, before the handler runs. If the server dies after that, the message is
	// lost, and the caller of a Call gets Unknown or Timeout. The message is not
	// handled twice, unless the connection breaks before the broker has read the
	// acknowledgement.
	AtMostOnce Delivery = iota
	// AtLeastOnce means that the message survives a restart of the broker, and is
	// acknowledged only after the handler has returned. If the server dies before
	// that, or the handler fails for a temporary reason, the message is delivered
	// again, so the handler must be idempotent. A server drops copies of a message that
	// it has handled: it remembers the last 10,000 messages, each for an hour.
	AtLeastOnce
)

// String returns the name of d on the wire.
func (d Delivery) String() string {
	if d == AtLeastOnce {
		return "at-least-once"
	}
	return "at-most-once"
}

// Method describes a method of an interface. Client and server import the same value, made with [Define]. Req and Resp are types that
// encoding/json can encode. A request or response of type [encoding/json.RawMessage] is sent unchanged and not parsed.
type Method[Req, Resp any] struct {
	// Interface is the set that the method belongs to. Required.
	Interface *Interface
	// Name is the method's name on the wire, unique in the interface. It has no
	// spaces, no dots and no @. Required.
	Name string
	// Since is the version of the interface in which the method was added. A server
	// of an older version, or of another major version, answers with
	// ErrUnsupportedVersion.
	Since Version
	// Delivery applies to casts. Default AtMostOnce. A call is always acknowledged
	// before its handler runs: its caller waits, and gets an error if the server dies.
	Delivery Delivery
	// Timeout is how long a handler may run before its context ends. The context of a call's handler ends at the caller's deadline at
	// the latest. Default for a cast of an AtLeastOnce method: nine tenths of the bus's Capabilities.ConsumerTimeout, if the bus has
	// one. Default for other handlers: only the caller's deadline, if any.
	Timeout time.Duration
}

func (m Method[Req, Resp]) signature() Signature {
	return Signature{m.Name, m.Since, m.Delivery, reflect.TypeFor[Req](), reflect.TypeFor[Resp]()}
}

// check panics if the method is not valid.
func (m Method[Req, Resp]) check() {
	switch {
	case m.Interface == nil:
		panic(fmt.Sprintf("rpc: method %q has no interface", m.Name))
	case checkInterface(m.Interface.Name) != nil:
		panic(fmt.Sprintf("rpc: method %q: %v", m.Name, checkInterface(m.Interface.Name)))
	case m.Name == "" || strings.ContainsAny(m.Name, " .@"):
		panic(fmt.Sprintf("rpc: method %q of %s has a name with a space, a dot or an @, or no name", m.Name, m.Interface.Name))
	case !m.Interface.Version.Accepts(m.Since):
		panic(fmt.Sprintf("rpc: %s.%s has Since %s, but the interface has version %s", m.Interface.Name, m.Name, m.Since, m.Interface.Version))
	}
}

func (m Method[Req, Resp]) info(kind bus.Kind, host string) Info {
	return Info{Kind: string(kind), Interface: m.Interface.Name, Method: m.Name, Version: m.Since, Host: host, Delivery: m.Delivery}
}

// Errors that the package itself returns. errors.Is matches them in the server's process and in the caller's.
var (
	// ErrNoConsumer: no server for the call runs now, or no server for the cast has ever run. The
	// request was not executed.
	ErrNoConsumer = bus.ErrNoConsumer
	// ErrNoSuchMethod: the server serves the version, but does not have the method.
	ErrNoSuchMethod = fault.Sentinel(fault.Unimplemented, "NoSuchMethod", "no such method")
	// ErrUnsupportedVersion: the server's interface is older than the method, or the server does not serve the major version. A server
	// checks the version before it looks for the method. The request was not executed.
	ErrUnsupportedVersion = fault.ErrUnsupportedVersion
	// ErrVersionCap: the method needs a version that the client's version caps do not allow. Nothing was sent.
	ErrVersionCap = fault.ErrVersionCap
	// ErrHeartbeatLost: no heartbeat came from the server of a long call for
	// ClientConfig.HeartbeatTimeout. The request may have been executed.
	ErrHeartbeatLost = fault.Sentinel(fault.Unknown, "Silent", "no heartbeat from the server")
	// ErrServerLost: the process of the server that had the call, or may have had it, is gone, or has been without
	// a connection to the broker for more than a second. The caller gets this error within 2 s, if the call has
	// more than a second left. The request may have been executed. A call that was still queued for that server
	// may be executed later; its handler's context is canceled if the client's cancel message arrives in time.
	ErrServerLost = fault.Sentinel(fault.Unknown, "ServerLost", "the server's process is gone")
	// ErrTooLarge: the message is larger than the bus carries, or than the broker accepts. It was not
	// sent, and a retry fails again: send less, or raise the limit of all processes and of the broker.
	ErrTooLarge = bus.ErrTooLarge
	// ErrReplyTooLarge: the handler ran, and its reply or the text of its error is larger than the bus carries.
	ErrReplyTooLarge = fault.Sentinel(fault.Internal, "ReplyTooLarge", "the reply is too large")
	// ErrClosed: the client or the bus was closed. Nothing was sent, unless the call was
	// already waiting for its reply.
	ErrClosed = bus.ErrClosed
)

// Info describes one message to an [Interceptor].
type Info struct {
	Kind      string // "call", "cast" or "fanout"
	Interface string
	Method    string
	Version   Version
	Host      string // Any, or the name of one host
	Delivery  Delivery
}

// String returns "interface.method", or "interface.method on host" if the message is for one host.
func (i Info) String() string {
	if i.Host != Any {
		return fmt.Sprintf("%s.%s on %s", i.Interface, i.Method, i.Host)
	}
	return i.Interface + "." + i.Method
}
