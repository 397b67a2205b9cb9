// Package scheduler is nova-mini's scheduler service: it ranks the hosts for a
// server and claims the best one.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/internal/text"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
)

// Config configures a Service.
type Config struct {
	Store *store.Store
	// DownAfter is how long a compute service without heartbeats still gets
	// servers, from its last heartbeat on.
	DownAfter time.Duration
	// Filters are the names of the filters, in the order of their use. A name is
	// one of this package, one of package placement, or Nova's name of a filter.
	// Default: [DefaultFilters].
	Filters []string
	// Multipliers are the multipliers of the weighers, by name. Default for each
	// weigher: the multiplier of package placement.
	Multipliers map[string]float64
	// SubsetSize is the number of best hosts of which one is chosen at random, so
	// that several schedulers do not all choose the same host (Nova's
	// host_subset_size). Default 1.
	SubsetSize int
	// MaxServers is the maximum number of servers on a host. The filter "consumers" (Nova's NumInstancesFilter) enforces it. Default 50.
	MaxServers int64
	// Observe is called after each decision. Default: decisions are not observed.
	Observe func(context.Context, scheduler.Observation)
	// ObserveClaim is called after each claim on a host. Default: claims are not observed.
	ObserveClaim func(context.Context, placement.Observation)
	Logger       *slog.Logger
}

// Service implements the RPC interface compute.Scheduler. It is safe for concurrent use.
type Service struct {
	cfg    Config
	fleet  scheduler.Fleet[*store.Host]
	placer placement.Placer[*spec, *store.Host]
	// best is a placer that always chooses the best host. It is for groups with a soft policy: a random choice of one of several hosts would ignore the policy.
	best placement.Placer[*spec, *store.Host]
	// hints has the configured filters that use a hint. Such a filter has the name of its hint.
	hints map[string]bool
}

// RefreshInterval is the interval at which [Service.Refresh] should be called. A decision uses the hosts as the last call has read
// them, and rejects hosts that were read more than maxAge ago. The claim uses the database, see [placement.Placer].
const (
	RefreshInterval = 2 * time.Second
	maxAge          = 5 * time.Second
)

// maxRanked is the number of ranked hosts that a decision keeps. The Placer tries to claim on at most five of them before it reads the hosts again.
const maxRanked = 10

// spec is the request that filters and weighers get.
type spec struct {
	placement.Request

	tried []string // hosts on which a build has failed
	// refused is an extra spec of the flavor that no host can satisfy, or "".
	refused string
	driver  []driver.Capability // what the driver of the host must have
}

type filter = scheduler.Filter[*spec, *store.Host]

// builtInFilters are always used, because these rules hold in every configuration: a host on which a build has failed is never chosen again; a client may choose
// the host and its zone; an image may need a kind of guest or a trait; a flavor may ask for something that no host can do; a part of the server may need a capability of the driver; a group has a policy, which the claim
// checks again.
var builtInFilters = []string{"tried", "extra_specs", "driver", "forced", "zone", "platform", "traits", "affinity", "anti_affinity"}

// DefaultFilters are the filters that are used if the configuration names none.
var DefaultFilters = append(slices.Clone(builtInFilters), "disabled", "down", "capabilities", placement.VCPU, placement.MemoryMB, placement.DiskGB)

// nova maps the names of Nova's filters to the filters of this package and of package placement that do the same.
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
	"AvailabilityZoneFilter": "the zone that a client asks for always counts",
}

// removed maps the names of filters that Nova has removed to the filters that do the same.
var removed = map[string]string{"CoreFilter": placement.VCPU, "RamFilter": placement.MemoryMB, "DiskFilter": placement.DiskGB}

// hintFilter returns a clause for the error of a filter that does not exist: the most similar name, of this package or of Nova.
func hintFilter(name string, own []filter) string {
	if ours, ok := removed[name]; ok {
		return "; Nova has removed " + name + ", and " + ours + " does the same"
	}
	known := slices.Concat(slices.Collect(maps.Keys(nova)), slices.Collect(maps.Keys(builtIn)))
	for _, f := range own {
		known = append(known, f.Name())
	}
	return text.Nearest(name, slices.Values(known))
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
	s := &Service{cfg: cfg, hints: map[string]bool{}}
	for _, n := range filterNames(cfg.Filters) {
		s.hints[n] = n == store.SameHost || n == store.DifferentHost
	}
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

// forNewServers are the filters that do not fit a server that stays on its host. They check whether the host takes another server, or count the server itself as one of the host's
// servers. The amounts of resources are checked by the claim.
var forNewServers = []string{"tried", "disabled", "down", "resources", "affinity", "anti_affinity", "tasks", "consumers", placement.VCPU, placement.MemoryMB, placement.DiskGB}

// Refusal returns why a server could not stay on its host with a changed request: the first of the configured filters, except those of forNewServers, that rejects the host,
// with its words. It returns "" if the host passes. A host that does not exist does not pass. Refusal does not use Store. Errors: those of Validate.
func (c Config) Refusal(ctx context.Context, hosts []*store.Host, host string, req *compute.SelectRequest) (string, error) {
	names := slices.DeleteFunc(slices.Clone(filterNames(c.Filters)), func(n string) bool { return slices.Contains(forNewServers, n) })
	filters, err := filtersOf(placement.Options{DownAfter: c.DownAfter}, names)
	if err != nil {
		return "", err
	}
	at := slices.IndexFunc(hosts, func(h *store.Host) bool { return h.Hostname == host })
	if at < 0 {
		return "the host does not exist", nil
	}
	q := specOf(req)
	for _, f := range filters {
		judge, err := f.Prepare(ctx, q, hosts)
		if err != nil {
			return "", err
		}
		if judge != nil && judge(hosts[at]) != scheduler.Pass {
			return f.Name() + " (" + InWords(f.Name()) + ")", nil
		}
	}
	return "", nil
}

// ownFilters are the filters of this package.
var ownFilters = []filter{
	scheduler.FilterFunc("tried", func(s *spec, h *store.Host) scheduler.Verdict {
		if slices.Contains(s.tried, h.Hostname) {
			return scheduler.Reject("a build failed there")
		}
		return scheduler.Pass
	}),
	scheduler.FilterFunc("extra_specs", func(s *spec, _ *store.Host) scheduler.Verdict {
		if s.refused != "" {
			return scheduler.Reject("no driver can do " + s.refused)
		}
		return scheduler.Pass
	}),
	scheduler.FilterFunc("driver", func(s *spec, h *store.Host) scheduler.Verdict {
		for _, need := range s.driver {
			if has := h.DriverCapabilities.V; has != nil && !slices.Contains(has, need) {
				return scheduler.Reject("its driver does not have the capability " + string(need))
			}
		}
		return scheduler.Pass
	}),
}

// filtersOf returns the filters with these names. Errors: Invalid if one does not exist.
func filtersOf(o placement.Options, names []string) ([]filter, error) {
	all := append(slices.Clip(ownFilters), placement.Filters[*spec, *store.Host](o)...)
	found, err := scheduler.ByName(all, names)
	if err != nil {
		for _, n := range names {
			if !slices.ContainsFunc(all, func(f filter) bool { return f.Name() == n }) { // the name in the error
				return nil, fault.New(fault.CodeOf(err), "%w%s", err, hintFilter(n, all))
			}
		}
	}
	return found, err
}

// newRanking returns a scheduler with the filters and weighers of a configuration. It chooses at random from the best hosts; the parameter subset is their number.
func newRanking(cfg *Config, subset int) (*scheduler.Scheduler[*spec, *store.Host], error) {
	o := placement.Options{DownAfter: cfg.DownAfter, MaxConsumers: cfg.MaxServers, Multipliers: cfg.Multipliers}
	filters, err := filtersOf(o, filterNames(cfg.Filters))
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

// filterNames translates the configured names, which may be Nova's, to the names of filters of this package and of package placement. It adds builtInFilters.
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

// Refresh reads all hosts from the database, so that decisions need not read them. Call it in a loop, see [RefreshInterval].
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

// WriteReport writes the number of hosts in the fleet, and the age of their reports. It is a part of the report that SIGUSR2 prints.
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

// hosts returns all hosts as the last Refresh has read them. If fresh is true, hosts calls Refresh first, and returns Unavailable if
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
		// The cloud is starting, or has an outage. This is temporary, so the error is not ErrNoValidHost.
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

// Claim implements placement.Store. Errors: those of the embedded store; placement.ErrChanged also if the host's compute service does not accept servers.
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

// addHints sets the hosts that the hints of the server name, for the configured filters that use hints.
func (s *Service) addHints(ctx context.Context, q *spec) error {
	if s.hints[store.SameHost] {
		hosts, given, err := s.cfg.Store.HintedHosts(ctx, q.Consumer, store.SameHost)
		if err != nil {
			return err
		}
		if q.SameAs = hosts; given && len(hosts) == 0 {
			q.SameAs = []string{""} // no host has this name, while an empty list would have no effect
		}
	}
	if s.hints[store.DifferentHost] {
		hosts, _, err := s.cfg.Store.HintedHosts(ctx, q.Consumer, store.DifferentHost)
		if err != nil {
			return err
		}
		q.NotWith = hosts
	}
	return nil
}

// specOf returns a request in the form that filters need. The host and the group of the request, and the hosts that hints name, are not set.
func specOf(req *compute.SelectRequest) *spec {
	q := &spec{tried: req.Exclude, Request: placement.Request{Consumer: req.ServerID, Resources: store.Need(req.Need), Zone: req.Zone, Platform: placement.Platform(req.Guest.Platform), Required: req.Guest.Traits}}
	needs := compute.NeedsOf(req.Specs, req.Need)
	q.Required, q.Forbidden, q.Specs, q.refused = append(slices.Clone(q.Required), needs.Required...), needs.Forbidden, needs.Conditions, needs.Refused
	q.driver = req.Driver
	return q
}

// Select chooses a host and claims it, see compute.Select.
func (s *Service) Select(ctx context.Context, req *compute.SelectRequest) (*compute.SelectReply, error) {
	q := specOf(req)
	if req.Host != "" {
		q.Force = []string{req.Host}
	}
	if err := s.addHints(ctx, q); err != nil {
		return nil, err
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
		text := fault.New(f.Code, "No valid host was found. %s", countInWords(placed.Decision)) // without the context that wrapping has added to err
		return nil, fault.WithReason(text, f.Reason, f.Meta)
	case err != nil:
		return nil, err
	}
	if !placed.AlreadyClaimed {
		s.fleet.Update(placed.Host.Name(), func(h *store.Host) *store.Host { // until the next Refresh
			next := *h
			next.Provider = h.With(&q.Request)
			next.Tasks = h.Tasks // Provider.With adds a task, but nova-mini does not count tasks
			return &next
		})
	}
	return &compute.SelectReply{Host: placed.Host.Hostname}, nil
}
