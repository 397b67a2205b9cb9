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

// Version is the version of an interface. The major number changes when old
// clients stop working, the minor one when something is added.
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

// Accepts reports whether a server or a cap of version v takes a request that
// needs version need: the same major, and a minor that is not newer. It is
// oslo.messaging's rule (version_is_compatible).
func (v Version) Accepts(need Version) bool { return v.Major == need.Major && need.Minor <= v.Minor }

// Interface is a named, versioned set of methods that one kind of server
// offers. Its name is part of the names of queues, so it never changes. It knows the methods that [Define] has added.
// It must not be copied.
type Interface struct {
	// Name is what the queues are called, such as "backup". It has no spaces and
	// no characters that are special in a broker's names: * # > /.
	Name string
	// Version is the newest version that this source tree implements.
	Version Version

	mu      sync.Mutex
	methods map[string]Signature
}

// Signature describes a method, with its Go types if they are known.
type Signature struct {
	Name              string
	Since             Version
	Delivery          Delivery
	Request, Response reflect.Type `json:"-"`
}

// Define adds the method to its interface and returns it. A server of the interface does not start until the method has
// a handler. It is for the variables in which methods stand:
//
//	var Start = rpc.Define(rpc.Method[StartRequest, StartReply]{Interface: Interface, Name: "start", Since: rpc.Version{Major: 1}})
//
// Define panics, because it is a programmer's error, if the interface has a method of that name, if the method has no
// name, or one with a space, a dot or an @, or if the method needs a newer version than the interface has.
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

// Methods lists the methods that [Define] has added, by name. What they are must not change within a major version;
// rpctest.Contract checks that.
func (i *Interface) Methods() []Signature {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.SortedFunc(maps.Values(i.methods), func(a, b Signature) int { return strings.Compare(a.Name, b.Name) })
}

// knows reports whether a server of the interface may have a handler for a method of that name. An interface without
// defined methods has any.
func (i *Interface) knows(name string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, ok := i.methods[name]
	return ok || len(i.methods) == 0
}

// Any is the host to give when any server of the interface may take the
// message: the first that is free gets it.
const Any = ""

// None is the request or the response of a method that has none.
type None = struct{}

// Delivery says what is promised when a server dies.
type Delivery uint8

const (
	// AtMostOnce means that the message is acknowledged when a handler slot takes
	// it, before the handler runs. If the server dies then, the message is gone
	// and the caller of a Call sees Unknown or Timeout. It does not run twice,
	// unless the connection breaks before the broker has read the
	// acknowledgement.
	AtMostOnce Delivery = iota
	// AtLeastOnce means that the message survives a restart of the broker, and it is
	// acknowledged only after the handler returned. If the server dies first,
	// or the handler fails for a reason that may pass, it is delivered again,
	// so the handler must be idempotent.
	AtLeastOnce
)

// String returns the name of d on the wire.
func (d Delivery) String() string {
	if d == AtLeastOnce {
		return "at-least-once"
	}
	return "at-most-once"
}

// Method is what client and server agree on: one value that both import, made with [Define]. Req and
// Resp are what encoding/json can encode; a [encoding/json.RawMessage] is sent as it is, not
// even looked at.
type Method[Req, Resp any] struct {
	// Interface is the set the method belongs to. Required.
	Interface *Interface
	// Name is the method's name on the wire, unique in the interface. It has no
	// spaces, no dots and no @. Required.
	Name string
	// Since is the version of the interface that brought the method. A server
	// of an older version refuses the call with ErrUnsupportedVersion.
	Since Version
	// Delivery is what is promised when a server dies. Default AtMostOnce.
	// It counts for casts; a call is only as safe as its caller, who waits.
	Delivery Delivery
	// Timeout is how long a handler may run before its context ends. Default: a
	// call's until its deadline, any other as long as the bus allows.
	Timeout time.Duration
}

func (m Method[Req, Resp]) signature() Signature {
	return Signature{m.Name, m.Since, m.Delivery, reflect.TypeFor[Req](), reflect.TypeFor[Resp]()}
}

// check panics if the method cannot be one.
func (m Method[Req, Resp]) check() {
	switch {
	case m.Interface == nil:
		panic(fmt.Sprintf("rpc: method %q has no interface", m.Name))
	case m.Name == "" || strings.ContainsAny(m.Name, " .@"):
		panic(fmt.Sprintf("rpc: method %q of %s has a name with a space, a dot or an @, or no name", m.Name, m.Interface.Name))
	case !m.Interface.Version.Accepts(m.Since):
		panic(fmt.Sprintf("rpc: %s.%s since %s, but the interface has version %s", m.Interface.Name, m.Name, m.Since, m.Interface.Version))
	}
}

func (m Method[Req, Resp]) info(kind bus.Kind, host string) Info {
	return Info{Kind: string(kind), Interface: m.Interface.Name, Method: m.Name, Version: m.Since, Host: host, Delivery: m.Delivery}
}

// Errors that the package makes itself. errors.Is matches them on both sides.
var (
	// ErrNoConsumer: a call found no server now, or the host of a cast never had a
	// server. The request was not executed.
	ErrNoConsumer = bus.ErrNoConsumer
	// ErrNoSuchMethod: the server does not know the method.
	ErrNoSuchMethod = fault.Sentinel(fault.Unimplemented, "NoSuchMethod", "no such method")
	// ErrUnsupportedVersion: the server is older than the method, or of another
	// major version.
	ErrUnsupportedVersion = fault.Sentinel(fault.Unimplemented, "UnsupportedVersion", "unsupported version")
	// ErrVersionCap: the client's own cap forbids the method. Nothing was sent.
	ErrVersionCap = fault.Sentinel(fault.Precondition, "VersionCap", "the version cap forbids it")
	// ErrHeartbeatLost: the client has not heard of the server of a long call for
	// ClientConfig.HeartbeatTimeout. The request may have been executed.
	ErrHeartbeatLost = fault.Sentinel(fault.Unknown, "Silent", "no heartbeat from the server")
	// ErrServerLost: the process of the server that had the call, or may have had it, is gone, or has been without
	// a connection to the broker for more than a second. It comes within 2 s, to calls that have more than a
	// second left. The request may have been executed. A call that still waited for that server may be executed
	// later; its context is then canceled if the message that says so comes in time.
	ErrServerLost = fault.Sentinel(fault.Unknown, "ServerLost", "the server's process is gone")
	// ErrTooLarge: the message is larger than the bus carries, or than the broker accepts. It was not
	// sent, and never will be: send less, or raise the limit of all processes and of the broker.
	ErrTooLarge = bus.ErrTooLarge
	// ErrReplyTooLarge: the handler ran, and its reply or the text of its error is larger than the bus carries.
	ErrReplyTooLarge = fault.Sentinel(fault.Internal, "ReplyTooLarge", "the reply is too large")
	// ErrClosed: the client or the bus was closed. Nothing was sent.
	ErrClosed = bus.ErrClosed
)

// Info describes one message to an [Interceptor].
type Info struct {
	Kind      string // "call", "cast" or "fanout"
	Interface string
	Method    string
	Version   Version
	Host      string // Any, or the one host that is meant
	Delivery  Delivery
}

// String returns "interface.method", and the host if one is meant.
func (i Info) String() string {
	if i.Host != Any {
		return fmt.Sprintf("%s.%s on %s", i.Interface, i.Method, i.Host)
	}
	return i.Interface + "." + i.Method
}
