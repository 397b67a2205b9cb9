// Package scheduler is nova-mini's scheduler service: it ranks the hosts for a
// server and claims the best one.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
)

// Config configures a Service.
type Config struct {
	Store *store.Store
	// DownAfter is how long after its last heartbeat a compute service still gets
	// servers.
	DownAfter time.Duration
	// Filters are the names of the filters, in the order of their use: names of
	// this package, of package placement, or Nova's. Default: [DefaultFilters].
	Filters []string
	// Multipliers are the multipliers of the weighers, by name. A weigher that is
	// not named has the multiplier of package placement.
	Multipliers map[string]float64
	// SubsetSize is the number of best hosts of which one is chosen at random, so
	// that several schedulers do not all choose the same host (Nova's
	// host_subset_size). Default 1.
	SubsetSize int
	// Observe is called after each decision. Default: decisions are not observed.
	Observe func(context.Context, scheduler.Observation)
	// ObserveClaim is called after each claim on a host. Default: claims are not observed.
	ObserveClaim func(context.Context, placement.Observation)
	Logger       *slog.Logger
}

// Service answers the scheduler's RPC interface. It is safe for concurrent use.
type Service struct {
	cfg    Config
	fleet  scheduler.Fleet[*store.Host]
	placer placement.Placer[*spec, *store.Host]
	// best is a placer that chooses the best host, for requests with preferences: a random one of several hosts would ignore them.
	best placement.Placer[*spec, *store.Host]
}

// RefreshInterval is the interval at which [Service.Refresh] should be called. The hosts of a decision are as old as the last
// call. Hosts that are older than maxAge are rejected. The claim uses the database, see [placement.Placer].
const (
	RefreshInterval = 2 * time.Second
	maxAge          = 5 * time.Second
)

// maxRanked is how many hosts a decision ranks. The Placer tries to claim on at most five of them before it reads the hosts again.
const maxRanked = 10

// spec is a request as filters and weighers see it.
type spec struct {
	placement.Request

	tried []string
}

type filter = scheduler.Filter[*spec, *store.Host]

// builtInFilters are always used: a host on which a build has failed is never chosen again, a client may choose the host, and the claim checks the
// policy of a group, too.
var builtInFilters = []string{"tried", "forced", "affinity", "anti_affinity"}

// DefaultFilters are the filters that are used if the configuration names none.
var DefaultFilters = append(slices.Clone(builtInFilters), "disabled", "down", placement.VCPU, placement.MemoryMB, placement.DiskGB)

// nova maps names of Nova's filters to the filters of this package and of package placement that do the same.
var nova = map[string][]string{
	"ComputeFilter":                     {"disabled", "down"},
	"ComputeCapabilitiesFilter":         {"capabilities"},
	"ImagePropertiesFilter":             {"platform"},
	"ServerGroupAffinityFilter":         {"affinity"},
	"ServerGroupAntiAffinityFilter":     {"anti_affinity"},
	"IoOpsFilter":                       {"tasks"},
	"AggregateIoOpsFilter":              {"tasks"},
	"NumInstancesFilter":                {"consumers"},
	"AggregateNumInstancesFilter":       {"consumers"},
	"SameHostFilter":                    {"same_host"},
	"DifferentHostFilter":               {"different_host"},
	"AggregateInstanceExtraSpecsFilter": {"aggregate_specs"},
	"AggregateImagePropertiesIsolation": {"aggregate_properties"},
	"AggregateMultiTenancyIsolation":    {"aggregate_tenant"},
	"AggregateTypeAffinityFilter":       {"aggregate_type"},
}

// builtIn maps names of Nova's filters to the reason why nova-mini needs no filter for them.
var builtIn = map[string]string{
	"RetryFilter":            "a host on which a build has failed is not asked again",
	"AvailabilityZoneFilter": "nova-mini has no availability zones, so every host is in the requested zone",
}

// New returns a service. Errors: Invalid if the configuration names a filter that does not
// exist; the error lists the known names. Filters of Nova that are built in are accepted, and
// the log names them.
func New(cfg Config) (*Service, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	rank, err := newRanking(&cfg, cfg.SubsetSize)
	if err != nil {
		return nil, err
	}
	best, err := newRanking(&cfg, 1)
	if err != nil {
		return nil, err
	}
	for _, n := range cfg.Filters {
		if why, ok := builtIn[n]; ok {
			cfg.Logger.Info("filter is built in", "filter", n, "reason", why)
		}
	}
	s := &Service{cfg: cfg}
	claims := currentClaims{cfg.Store.Claims(), cfg.Store.Members(cfg.DownAfter)}
	s.placer = placement.Placer[*spec, *store.Host]{Scheduler: rank, Store: claims, Hosts: s.hosts, Observe: cfg.ObserveClaim}
	s.best = s.placer
	s.best.Scheduler = best
	return s, nil
}

// Validate returns the error that [New] would return for the filters. It does not use Store.
func (c Config) Validate() error {
	_, err := newRanking(&c, c.SubsetSize)
	return err
}

// newRanking returns a scheduler with the filters and weighers of a configuration, which chooses one of the subset best hosts.
func newRanking(cfg *Config, subset int) (*scheduler.Scheduler[*spec, *store.Host], error) {
	o := placement.Options{DownAfter: cfg.DownAfter, Multipliers: cfg.Multipliers}
	names := filterNames(cfg.Filters)
	tried := scheduler.FilterFunc("tried", func(s *spec, h *store.Host) scheduler.Verdict {
		if slices.Contains(s.tried, h.Hostname) {
			return scheduler.Reject("a build failed there")
		}
		return scheduler.Pass
	})
	filters, err := scheduler.ByName(append([]filter{tried}, placement.Filters[*spec, *store.Host](o)...), names)
	if err != nil {
		return nil, err
	}
	return scheduler.New(scheduler.Config[*spec, *store.Host]{
		Filters:   append([]filter{scheduler.Fresh[*spec, *store.Host](maxAge)}, filters...),
		Weighers:  placement.Weighers[*spec, *store.Host](o),
		Picker:    scheduler.Subset(max(subset, 1)),
		MaxRanked: maxRanked,
		Observe:   cfg.Observe,
	})
}

// filterNames returns the names of the filters in this package and in package placement. The configured names may be Nova's.
func filterNames(configured []string) []string {
	if len(configured) == 0 {
		return DefaultFilters
	}
	names := slices.Clone(builtInFilters)
	for _, n := range configured {
		ours, ok := nova[n]
		if _, done := builtIn[n]; !ok && !done {
			ours = []string{n}
		}
		for _, n := range ours {
			if !slices.Contains(names, n) { // several of Nova's filters may be one filter here
				names = append(names, n)
			}
		}
	}
	return names
}

// Register adds the service's handlers to a server.
func (s *Service) Register(srv *rpc.Server) { rpc.Handle(srv, compute.Select, s.Select) }

// Refresh reads all hosts from the database, so that decisions do not have to. It is for a loop, see [RefreshInterval].
// Without the loop each decision reads the hosts itself.
func (s *Service) Refresh(ctx context.Context) error {
	began := time.Now()
	hosts, err := s.cfg.Store.Hosts(ctx, s.cfg.DownAfter)
	if err != nil {
		return err
	}
	s.fleet.Report(hosts...)
	s.fleet.Forget(time.Since(began)) // the hosts that the database no longer has
	return nil
}

// WriteReport writes how many hosts the fleet has, and how old their reports are. It is for the report of SIGUSR2.
func (s *Service) WriteReport(w io.Writer) error {
	newest, oldest := s.fleet.Age()
	_, err := fmt.Fprintf(w, "%d hosts, reports %s to %s old\n", len(s.fleet.Hosts()), newest.Round(time.Millisecond), oldest.Round(time.Millisecond))
	return err
}

// Providers returns the resources of all hosts as the last Refresh has read them. It is for metrics.
func (s *Service) Providers(context.Context) ([]*placement.Provider, error) {
	hosts := s.fleet.Hosts()
	out := make([]*placement.Provider, len(hosts))
	for i, h := range hosts {
		out[i] = h.Placement()
	}
	return out, nil
}

// hosts returns all hosts as the last Refresh has read them. If fresh is true, it reads them now, and fails with Unavailable if
// no host is up.
func (s *Service) hosts(ctx context.Context, fresh bool) ([]*store.Host, error) {
	if !fresh {
		return s.fleet.Hosts(), nil
	}
	if err := s.Refresh(ctx); err != nil {
		return nil, err
	}
	hosts := s.fleet.Hosts()
	if !slices.ContainsFunc(hosts, func(h *store.Host) bool { return h.Service.Up }) {
		// The cloud is starting, or has an outage. This is temporary, and not a lack of resources.
		return nil, fault.New(fault.Unavailable, "none of the %d compute hosts is up", len(hosts))
	}
	return hosts, nil
}

// currentClaims is a store of claims that also checks in the database whether the host's compute service accepts servers, because
// the fleet may be out of date.
type currentClaims struct {
	placement.Store

	members *membership.Registry
}

// Claim implements placement.Store. Errors: placement.ErrChanged, if the host's compute service does not accept servers.
func (c currentClaims) Claim(ctx context.Context, claims ...placement.Claim) error {
	for i := range claims {
		for _, a := range claims[i].Allocations {
			m, err := c.members.Get(ctx, store.ComputeBinary, a.Provider)
			switch {
			case errors.Is(err, fault.NotFound):
				return fmt.Errorf("host %s has no compute service: %w", a.Provider, placement.ErrChanged)
			case err != nil:
				return err
			}
			if reason := m.Unfit(); reason != "" {
				return fmt.Errorf("host %s accepts no servers: %s: %w", a.Provider, reason, placement.ErrChanged)
			}
		}
	}
	return c.Store.Claim(ctx, claims...)
}

// Select chooses a host and claims it, see compute.Select.
func (s *Service) Select(ctx context.Context, req *compute.SelectRequest) (*compute.SelectReply, error) {
	q := &spec{tried: req.Exclude, Request: placement.Request{Consumer: req.ServerID, Resources: store.Need(req.Need)}}
	if req.Host != "" {
		q.Force = []string{req.Host}
	}
	placer := &s.placer
	if req.Group != nil {
		g, err := s.cfg.Store.PlacementGroup(ctx, *req.Group)
		if err != nil {
			return nil, err
		}
		if q.Group = g; g.Policy == placement.SoftAffinity || g.Policy == placement.SoftAntiAffinity {
			placer = &s.best
		}
	}
	placed, err := placer.Place(ctx, q)
	switch {
	case errors.Is(err, scheduler.ErrNoValidHost):
		s.cfg.Logger.InfoContext(ctx, "no valid host", "server", req.ServerID, "decision", placed.Decision.String())
		f := fault.From(err)
		text := fault.New(f.Code, "No valid host was found. %s", placed.Decision.Summary()) // without the texts that callers have put before the error
		return nil, fault.WithReason(text, f.Reason, f.Meta)
	case err != nil:
		return nil, err
	}
	if !placed.AlreadyClaimed {
		s.fleet.Update(placed.Host.Name(), func(h *store.Host) *store.Host { // until the next Refresh
			next := *h
			next.Provider = h.With(&q.Request)
			next.Tasks = h.Tasks // With has added one, but nova-mini does not count tasks
			return &next
		})
	}
	return &compute.SelectReply{Host: placed.Host.Hostname}, nil
}
