// Package scheduler is nova-mini's scheduler service: it ranks the hosts for a
// server and claims the best one.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
)

// Config configures a Service.
type Config struct {
	Store *store.Store
	// DownAfter is how long a compute service may be silent and still get
	// servers.
	DownAfter time.Duration
	// SubsetSize is among how many of the best hosts one is drawn, so that
	// several schedulers do not all want the same one (Nova's host_subset_size).
	// Default 1.
	SubsetSize int
	Logger     *slog.Logger
}

// Service answers the scheduler's RPC interface. It is safe for concurrent use.
type Service struct {
	cfg  Config
	rank *scheduler.Scheduler[*compute.SelectRequest, *store.Host]
}

type (
	request = *compute.SelectRequest
	host    = *store.Host
)

// New returns a service.
func New(cfg Config) (*Service, error) {
	rank, err := scheduler.New(scheduler.Config[request, host]{
		Filters: []scheduler.Filter[request, host]{
			scheduler.FilterFunc("tried", func(r request, h host) scheduler.Verdict {
				if slices.Contains(r.Exclude, h.Hostname) {
					return scheduler.Reject("a build failed there")
				}
				return scheduler.Pass
			}),
			scheduler.FilterFunc("disabled", func(_ request, h host) scheduler.Verdict {
				if h.Service.Disabled {
					return scheduler.Reject("the compute service is disabled: %s", h.Service.DisabledReason)
				}
				return scheduler.Pass
			}),
			scheduler.FilterFunc("down", func(_ request, h host) scheduler.Verdict {
				if !h.Service.Up {
					return scheduler.Reject("not seen since %s", h.Service.SeenAt.Format(time.RFC3339))
				}
				return scheduler.Pass
			}),
			room(compute.VCPU, "", func(r compute.Resources) int { return r.VCPUs }),
			room(compute.MemoryMB, " MiB", func(r compute.Resources) int { return r.MemoryMiB }),
			room(compute.DiskGB, " GiB", func(r compute.Resources) int { return r.DiskGiB }),
		},
		Weighers: []scheduler.Weighted[request, host]{
			free("ram", compute.MemoryMB), free("cpu", compute.VCPU), free("disk", compute.DiskGB),
		},
		Picker: scheduler.Subset(max(cfg.SubsetSize, 1)),
	})
	if err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Service{cfg: cfg, rank: rank}, nil
}

// room turns hosts away that have too little of a resource class left.
func room(class, unit string, of func(compute.Resources) int) scheduler.Filter[request, host] {
	return scheduler.FilterFunc(class, func(r request, h host) scheduler.Verdict {
		if need, have := int64(of(r.Need)), h.Free(class); need > have {
			return scheduler.Reject("needs %d%s, %d%s free", need, unit, have, unit)
		}
		return scheduler.Pass
	})
}

// free prefers hosts that have more of a resource class left, as Nova's RAM, CPU
// and disk weighers do.
func free(name, class string) scheduler.Weighted[request, host] {
	return scheduler.Weighted[request, host]{
		Weigher:    scheduler.WeigherFunc(name, func(_ request, h host) float64 { return float64(h.Free(class)) }),
		Multiplier: 1,
	}
}

// Register adds the service's handlers to a server.
func (s *Service) Register(srv *rpc.Server) { rpc.Handle(srv, compute.Select, s.Select) }

// tries is how often the hosts are ranked anew when others took the room between
// the choice and the claim. Each time somebody else got a server placed, so that
// this is no livelock.
const tries = 20

// Select chooses a host and claims it, see compute.Select. The choice is a guess
// from what was read; the claim is what decides.
func (s *Service) Select(ctx context.Context, req *compute.SelectRequest) (*compute.SelectReply, error) {
	for range tries {
		hosts, err := s.cfg.Store.Hosts(ctx, s.cfg.DownAfter)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(hosts, func(h host) bool { return h.Service.Up }) {
			// The cloud starts, or has an outage. That passes: it says nothing
			// about whether there is room.
			return nil, fault.New(fault.Unavailable, "none of the %d compute hosts is up", len(hosts))
		}
		decision, err := s.rank.Rank(ctx, req, hosts)
		if err != nil {
			if errors.Is(err, scheduler.ErrNoValidHost) {
				s.cfg.Logger.InfoContext(ctx, "no valid host", "server", req.ServerID, "decision", decision.String())
				f := fault.From(err)
				f.Msg = "No valid host was found. " + decision.Summary() // as users read it
				return nil, f
			}
			return nil, err
		}
		for _, r := range decision.Ranked {
			claimed, err := s.cfg.Store.Claim(ctx, req.ServerID, r.Host.Hostname, req.Need)
			switch {
			case err == nil:
				return &compute.SelectReply{Host: claimed}, nil
			case !errors.Is(err, store.ErrNoRoom):
				return nil, fmt.Errorf("claim on %s: %w", r.Host.Hostname, err)
			}
		}
	}
	return nil, fault.New(fault.Unavailable, "server %s: every host that had room was taken by others, %d times", req.ServerID, tries)
}
