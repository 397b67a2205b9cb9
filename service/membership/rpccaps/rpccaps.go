// Package rpccaps takes the version caps of RPC clients from the members of a component, so that a client sends only messages that every
// running server understands. Package membership does not import package rpc; this package imports both.
//
//	server := rpc.NewServer(bus, rpc.ServerConfig{Interface: volume.Interface, Host: host})
//	member := members.Member(membership.MemberConfig{Self: membership.Self{Kind: "volume", Host: host, Interfaces: rpccaps.Of(server)}})
//	client := rpc.NewClient(bus, rpc.ClientConfig{AutoCaps: rpccaps.New(rpccaps.Config{Members: members}).Read})
//	...
//	app.Add("client", client)
//	app.Add("versions", member.Announcement()) // before the server serves
//	app.Add("volume rpc", server)
//	app.Add("member", member)
//
// A process without a database asks a process that has the database. The asked process serves a method for this:
//
//	var VersionCaps = rpccaps.Define(Conductor)                                     // in the package of the interface
//	rpc.Handle(server, VersionCaps, caps.Answer)                                    // in the process with the database
//	client := rpc.NewClient(bus, rpc.ClientConfig{AutoCaps: rpccaps.Ask(VersionCaps, nil)}) // in the process without
//
// The caps of an interface are the versions that all members that count serve, see [membership.Member.Counts]. For each major version that
// all these members have, the cap is the lowest of their minor versions. So caps go up when the last old process has left, was removed or
// was forced down, and go down when an old process announces itself. Clients learn of a change within ClientConfig.CapsEvery.
package rpccaps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/service/membership"
)

// Of returns the versions that the RPC servers of one process serve, for [membership.Self].
func Of(servers ...*rpc.Server) map[string][]string {
	out := map[string][]string{}
	for _, s := range servers {
		for name, list := range s.Versions() {
			out[name] = nil
			for _, v := range list {
				out[name] = append(out[name], v.String())
			}
		}
	}
	return out
}

// Config configures a [Caps]. Members is required.
type Config struct {
	Members *membership.Registry
	// Unreported has the versions of the newest release whose processes do not report their versions. Clients assume these versions for a
	// member without a report. They are also the caps of an interface that no known member serves. For an interface that is missing here,
	// clients assume the lowest version: the oldest major version that a member reports, with the minor version 0. Remove Unreported when
	// processes of that release are no longer supported. A component that reports versions since its first release leaves Unreported nil.
	Unreported rpc.Versions
	// Logger gets one line when a member begins to keep the caps of an interface below the newest version, and one line when the report of
	// a member cannot be used. Default slog.Default().
	Logger *slog.Logger
}

// Caps computes version caps from the members. It is safe for concurrent use.
type Caps struct {
	cfg    Config
	flight singleflight.Group
	last   atomic.Pointer[answer]

	mu    sync.Mutex
	noted map[note]bool // the notes of the last Read, which are logged already
}

// answer is a result of Read, for Answer.
type answer struct {
	versions rpc.Versions
	at       time.Time // when the reading began
}

// New returns a Caps. It does not read the database.
func New(cfg Config) *Caps {
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	return &Caps{cfg: cfg}
}

// Read reads the members and returns the caps. It is for rpc.ClientConfig.AutoCaps. Errors: those of [membership.Registry.List].
func (c *Caps) Read(ctx context.Context, _ *rpc.Client) (rpc.Versions, error) {
	list, err := c.cfg.Members.List(ctx, "")
	if err != nil {
		return nil, err
	}
	services := readReports(list, c.cfg.Unreported)
	c.log(ctx, services)
	return commonVersions(services, c.cfg.Unreported), nil
}

// answerAge is how long an answer is repeated, so that many processes that ask at the same time cause only one read.
const answerAge = time.Second

// readTimeout bounds the read for an answer.
const readTimeout = 10 * time.Second

// Answer is the handler of a method of [Define]. Its answers are at most one second old. Errors: those of Read.
func (c *Caps) Answer(ctx context.Context, _ *rpc.None) (*rpc.Versions, error) {
	if a := c.last.Load(); a != nil && time.Since(a.at) < answerAge {
		return &a.versions, nil
	}
	done := c.flight.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		began := time.Now()
		got, err := c.Read(ctx, nil)
		if err == nil {
			c.last.Store(&answer{got, began})
		}
		return got, err
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		got, _ := r.Val.(rpc.Versions)
		return &got, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Define adds the method version_caps to an interface, and returns the method. The method returns the caps and changes nothing. It needs
// only version MAJOR.0, so that a client may call it before it knows its caps. Errors of the method: Unavailable, while the database cannot
// be reached.
func Define(i *rpc.Interface) rpc.Method[rpc.None, rpc.Versions] {
	return rpc.Define(rpc.Method[rpc.None, rpc.Versions]{Interface: i, Name: "version_caps", Since: rpc.Version{Major: i.Version.Major}})
}

// Ask returns an rpc.ClientConfig.AutoCaps that calls a method of [Define]. If the server's release does not know the method, the caps are
// the parameter unreported, see Config.Unreported. Errors: those of [rpc.Call].
func Ask(method rpc.Method[rpc.None, rpc.Versions], unreported rpc.Versions) func(context.Context, *rpc.Client) (rpc.Versions, error) {
	return func(ctx context.Context, c *rpc.Client) (rpc.Versions, error) {
		got, err := rpc.Call(ctx, c, method, rpc.Any, &rpc.None{})
		switch {
		case errors.Is(err, rpc.ErrNoSuchMethod):
			return maps.Clone(unreported), nil
		case err != nil:
			return nil, fmt.Errorf("ask for the version caps: %w", err)
		}
		return *got, nil
	}
}

// readReports returns the members that count, with the versions that clients must assume for each of them.
func readReports(list []membership.Member, unreported rpc.Versions) []service {
	services := make([]service, len(list))
	for i := range list {
		services[i] = service{Member: &list[i], report: parseReport(list[i].Interfaces, unreported)}
	}
	lowest := lowestOfKinds(services)
	services = slices.DeleteFunc(services, func(s service) bool { return !s.Counts() })
	for i, s := range services {
		services[i].serves = rpc.Versions{}
		for name, assumed := range lowest[s.Kind] {
			if given, ok := unreported[name]; ok {
				assumed = given
			}
			if versions := s.versions(name, assumed); versions != nil {
				services[i].serves[name] = versions
			}
		}
	}
	return services
}

// commonVersions returns the versions that all services serve. For an interface that no service serves, it returns those of unreported.
func commonVersions(services []service, unreported rpc.Versions) rpc.Versions {
	out := rpc.Versions{}
	for _, s := range services {
		for name, versions := range s.serves {
			out[name] = intersectVersions(out, name, versions)
		}
	}
	for name, versions := range unreported {
		if _, known := out[name]; !known {
			out[name] = versions
		}
	}
	return out
}

// service is a member with its versions.
type service struct {
	*membership.Member

	report rpc.Versions // the versions in the member's report that can be parsed
	serves rpc.Versions // the versions that clients must assume
}

// versions returns the versions that the service serves of an interface of its kind. It returns assumed if the report has no usable
// versions. It returns nil if the service does not serve the interface and so gets no messages of it.
func (s service) versions(name string, assumed []rpc.Version) []rpc.Version {
	if _, offered := s.Interfaces[name]; s.Interfaces != nil && !offered {
		return nil
	}
	if versions := s.report[name]; versions != nil {
		return versions
	}
	return assumed
}

// lowestOfKinds returns, for each kind of service, the interfaces that members of this kind report, each with its lowest version: the
// oldest major version that a member reports, with the minor version 0.
func lowestOfKinds(services []service) map[string]rpc.Versions {
	out := map[string]rpc.Versions{}
	for _, s := range services {
		kind := out[s.Kind]
		if kind == nil {
			kind = rpc.Versions{}
			out[s.Kind] = kind
		}
		for name, versions := range s.report {
			major := versions[0].Major
			if was := kind[name]; was != nil {
				major = min(major, was[0].Major)
			}
			kind[name] = []rpc.Version{{Major: major}}
		}
	}
	return out
}

// parseReport reads the report of a member. It returns the newest minor version of each major version. It ignores versions in an unknown
// form, and major versions older than the oldest major version in unreported, because no release reports these. It leaves out an interface
// without a usable version.
func parseReport(report map[string][]string, unreported rpc.Versions) rpc.Versions {
	out := rpc.Versions{}
	for name, texts := range report {
		var versions []rpc.Version
		oldest := 0
		if known := unreported[name]; len(known) > 0 {
			oldest = known[0].Major
		}
		for _, text := range texts {
			var v rpc.Version
			if v.UnmarshalText([]byte(text)) == nil && v.Major >= oldest {
				versions = append(versions, v)
			}
		}
		slices.SortFunc(versions, func(a, b rpc.Version) int {
			return cmp.Or(cmp.Compare(a.Major, b.Major), cmp.Compare(b.Minor, a.Minor))
		})
		versions = slices.CompactFunc(versions, func(a, b rpc.Version) bool { return a.Major == b.Major }) // with a duplicate, intersectVersions would return duplicates
		if len(versions) > 0 {
			out[name] = versions
		}
	}
	return out
}

// intersectVersions returns the common versions of all[name] and serves. If all does not have the interface, it returns serves.
func intersectVersions(all rpc.Versions, name string, serves []rpc.Version) []rpc.Version {
	was, named := all[name]
	if !named {
		return serves
	}
	out := []rpc.Version{} // empty: the lists have no common version
	for _, a := range was {
		for _, b := range serves {
			if a.Major == b.Major {
				out = append(out, rpc.Version{Major: a.Major, Minor: min(a.Minor, b.Minor)})
			}
		}
	}
	return out
}
