package rpccaps

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/armature-go/armature/rpc"
)

// note is a fact about a member that an operator may have to change. A note is logged when it becomes true, and not
// again while it stays true.
type note struct {
	level          slog.Level
	event          string
	kind, host     string
	name, versions string // the name and the versions of the interface
	newest         string
}

// log logs the notes that were not true at the previous call.
func (c *Caps) log(ctx context.Context, services []service) {
	now := map[note]bool{}
	for _, s := range services {
		for name := range s.Interfaces {
			if s.report[name] == nil {
				now[note{slog.LevelWarn, "member reports no usable version of an interface, it counts as a member without a report", s.Kind, s.Host, name, fmt.Sprintf("%.200q", s.Interfaces[name]), ""}] = true
			}
		}
	}
	for name, v := range newestVersions(services) {
		at := slices.IndexFunc(services, func(s service) bool { return s.serves[name] != nil && !acceptVersion(s.serves[name], v) })
		if at >= 0 {
			s := services[at]
			now[note{slog.LevelInfo, "member keeps the version caps of an interface low", s.Kind, s.Host, name, fmt.Sprint(s.serves[name]), v.String()}] = true
		}
	}
	c.mu.Lock()
	fresh := maps.Clone(now)
	maps.DeleteFunc(fresh, func(n note, _ bool) bool { return c.noted[n] })
	c.noted = now
	c.mu.Unlock()
	for n := range fresh {
		args := []any{"member", n.kind, "host", n.host, "interface", n.name, "versions", n.versions}
		if n.newest != "" {
			args = append(args, "newest", n.newest)
		}
		c.cfg.Logger.Log(ctx, n.level, n.event, args...)
	}
}

// newestVersions returns the newest version of each interface that a service serves.
func newestVersions(services []service) map[string]rpc.Version {
	out := map[string]rpc.Version{}
	for _, s := range services {
		for name, versions := range s.serves {
			for _, v := range versions {
				if was, ok := out[name]; !ok || v.Major > was.Major || v.Major == was.Major && v.Minor > was.Minor {
					out[name] = v
				}
			}
		}
	}
	return out
}

func acceptVersion(versions []rpc.Version, need rpc.Version) bool {
	return slices.ContainsFunc(versions, func(v rpc.Version) bool { return v.Accepts(need) })
}
