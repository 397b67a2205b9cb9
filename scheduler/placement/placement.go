// Package placement has the parts that most schedulers need besides package scheduler:
//
//   - providers of resources, with inventories, traits and aggregates
//   - the usual filters and weighers for them
//   - claims that never over-commit, even if many schedulers claim at the same time
//
// A component embeds a provider in its hosts and a request in its requests:
//
//	type Node struct{ *placement.Provider; ... }  // a host
//	type Spec struct{ placement.Request; ... }    // a request
//
//	filters, err := scheduler.ByName(placement.Filters[*Spec, *Node](opts), cfg.EnabledFilters)
//	s, err := scheduler.New(scheduler.Config[*Spec, *Node]{Filters: filters, ...})
//	p := placement.Placer[*Spec, *Node]{Scheduler: s, Store: store, Hosts: nodes}
//	placed, err := p.Place(ctx, spec) // placed.Host has the claim
//
// A decision may use an old state of the hosts, so only the claim is binding. A claim is one transaction of a [Store], in
// which the statement that changes the used amount of a resource also checks its capacity.
package placement

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/big"
	"math/bits"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/armature-go/armature/fault"
)

// Resource classes that filters and weighers know by name. All other classes are treated alike. The names are those of
// OpenStack's os-resource-classes; the name of a component's own class begins with CUSTOM_.
const (
	VCPU     = "VCPU"
	MemoryMB = "MEMORY_MB"
	DiskGB   = "DISK_GB"
)

// Resources are amounts by resource class.
type Resources map[string]int64

// Inventory is the amount of one resource class that a provider has. Its rules are those of OpenStack's placement.
type Inventory struct {
	Total    int64 `json:"total"`
	Reserved int64 `json:"reserved,omitempty"` // the part of Total that consumers cannot have
	// Ratio is the over-commit ratio: the capacity is (Total - Reserved) * Ratio. 0 means 1.
	Ratio float64 `json:"allocation_ratio,omitempty"`
	// Min, Max and Step limit the amount of one consumer: at least Min, at most Max, and a multiple of Step. Default 1
	// for Min and Step, and no limit for Max.
	Min  int64 `json:"min_unit,omitempty"`
	Max  int64 `json:"max_unit,omitempty"`
	Step int64 `json:"step_size,omitempty"`
	// Used is the amount that consumers have. Only a Store sets it.
	Used int64 `json:"used,omitempty"`
}

// Capacity returns the amount that all consumers together may have: (Total - Reserved) * Ratio, rounded down.
func (i Inventory) Capacity() int64 { return freeOf(&i) + i.Used }

// Free returns the capacity minus the used amount. It is negative if the capacity has shrunk below the used amount.
func (i Inventory) Free() int64 { return freeOf(&i) }

// freeOf returns the same as Free, without a copy of the Inventory, because filters call it for every host.
func freeOf(i *Inventory) int64 {
	n := i.Total - i.Reserved
	if r := i.Ratio; r != 0 && r != 1 {
		n = scaleDown(n, r)
	}
	return n - i.Used
}

// scaleDown returns n times a ratio, rounded down. It uses the ratio as the decimal number that an operator writes: 100
// times 1.15 is 115, although the float64 nearest to 1.15 is a little less.
func scaleDown(n int64, ratio float64) int64 {
	scale := 1.0
	for range 10 { // up to nine decimals
		m := math.Round(ratio * scale)
		if m/scale == ratio && m < 1<<53 {
			if high, low := bits.Mul64(uint64(max(n, -n)), uint64(m)); high == 0 && low < 1<<63 {
				product, by := n*int64(m), int64(scale)
				if product < 0 {
					return (product - by + 1) / by // rounded down, not toward zero
				}
				return product / by
			}
			break
		}
		scale *= 10
	}
	r, ok := new(big.Rat).SetString(strconv.FormatFloat(ratio, 'g', -1, 64))
	if !ok { // infinite or NaN, which check refuses
		return 0
	}
	r.Mul(r, new(big.Rat).SetInt64(n))
	return new(big.Int).Div(r.Num(), r.Denom()).Int64() // Div rounds down for a positive divisor
}

// unit checks the limits of one consumer for the amount n. It returns "" if n is allowed, otherwise a format for n and the
// bound.
func (i Inventory) unit(n int64) (format string, bound int64) {
	switch {
	case n < i.Min:
		return "needs %d, at least %d for each consumer", i.Min
	case i.Max > 0 && n > i.Max:
		return "needs %d, at most %d for each consumer", i.Max
	case i.Step > 1 && n%i.Step != 0:
		return "needs %d, not a multiple of %d", i.Step
	}
	return "", 0
}

// Aggregate is a set of providers with common metadata. Several Providers share one Aggregate, so an Aggregate must not be
// changed.
type Aggregate struct {
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Platform is a kind of guest that a provider can run. In a request an empty field means any.
type Platform struct {
	Arch string `json:"arch,omitempty"` // x86_64
	Type string `json:"type,omitempty"` // qemu
	Mode string `json:"mode,omitempty"` // hvm
}

// Provider is a host, or anything else with resources, as a scheduler knows it. A component embeds a pointer to it in
// its own host type. A Provider that other goroutines may read must not be changed; [Provider.With] returns a changed
// copy.
type Provider struct {
	ID          string               `json:"id"`
	Zone        string               `json:"zone,omitempty"`
	Inventories map[string]Inventory `json:"inventories,omitempty"` // the key is the resource class
	Traits      []string             `json:"traits,omitempty"`      // sorted
	Aggregates  []*Aggregate         `json:"aggregates,omitempty"`
	// Generation grows by 1 when [Store].Put changes the provider, see there for the exceptions, and when an aggregate of
	// the provider is removed. Claims do not change it. 0: the provider was not written yet.
	Generation int64 `json:"generation,omitempty"`
	// At is the time of this state. A Store sets it to the time at which it reads the provider.
	At time.Time `json:"at,omitzero"`

	// Disabled is the reason why the provider gets no new consumers. Empty: the provider is enabled.
	Disabled string `json:"disabled,omitempty"`
	// SeenAt is the time of the provider's last heartbeat. Zero: the provider sends no heartbeats.
	SeenAt time.Time `json:"seen_at,omitzero"`
	// Platforms are the kinds of guests that the provider can run. Capabilities are further properties, for requests
	// with Specs.
	Platforms    []Platform        `json:"platforms,omitempty"`
	Capabilities map[string]string `json:"capabilities,omitempty"`
	// Tasks is the number of operations with much I/O that run on the provider. Consumers is the number of consumers
	// whose host is this provider. Members is the number of these consumers in each group, by the group's ID. A Store
	// counts Consumers and Members.
	Tasks     int64            `json:"tasks,omitempty"`
	Consumers int64            `json:"consumers,omitempty"`
	Members   map[string]int64 `json:"members,omitempty"`
}

// Name returns the ID. It makes a Provider a scheduler.Host.
func (p *Provider) Name() string { return p.ID }

// Placement returns p. It makes a type that embeds a *Provider a [Hosted].
func (p *Provider) Placement() *Provider { return p }

// ReportedAt returns At. It makes a Provider a scheduler.Reported, for a scheduler.Fleet.
func (p *Provider) ReportedAt() time.Time { return p.At }

// Has reports whether the provider has a trait.
func (p *Provider) Has(trait string) bool {
	_, ok := slices.BinarySearch(p.Traits, trait)
	return ok
}

// With returns a copy of the provider with one more consumer and one more task, for decisions before the provider's next report.
func (p *Provider) With(q *Request) *Provider {
	out := *p
	out.Inventories = maps.Clone(p.Inventories)
	for class, n := range q.Resources {
		i := out.Inventories[class]
		i.Used += n
		out.Inventories[class] = i
	}
	out.Consumers++
	out.Tasks++
	if q.Group != nil {
		out.Members = maps.Clone(p.Members)
		if out.Members == nil {
			out.Members = map[string]int64{}
		}
		out.Members[q.Group.ID]++
	}
	return &out
}

// Policy is the rule of a group for the hosts of its members.
type Policy string

// Policies. Weighers apply the soft policies, as preferences. Filters and claims enforce the others.
const (
	Affinity         Policy = "affinity"
	AntiAffinity     Policy = "anti-affinity"
	SoftAffinity     Policy = "soft-affinity"
	SoftAntiAffinity Policy = "soft-anti-affinity"
)

// Group is a set of consumers whose hosts depend on each other.
type Group struct {
	ID     string `json:"id"`
	Policy Policy `json:"policy"`
	// MaxPerHost is the maximum number of members on one host with AntiAffinity. Default 1.
	MaxPerHost int64 `json:"max_per_host,omitempty"`
	// Members has the number of members on each host. Filters and weighers use it in addition to the Members of the providers. A
	// claim ignores it, and uses the members that the Store knows. Default: only the Members of the providers count.
	Members map[string]int64 `json:"members,omitempty"`
}

// Request says what a consumer needs of a host. A component embeds it in its own request type. All fields are optional.
type Request struct {
	// Consumer is the ID of the consumer in the claim.
	Consumer  string    `json:"consumer,omitempty"`
	Resources Resources `json:"resources,omitempty"`
	Required  []string  `json:"required,omitempty"`  // traits
	Forbidden []string  `json:"forbidden,omitempty"` // traits
	Zone      string    `json:"zone,omitempty"`
	Tenant    string    `json:"tenant,omitempty"`
	Type      string    `json:"type,omitempty"` // name of the request's type; hosts may be reserved for types
	// Specs are conditions on the capabilities and on the aggregates of a host. A key is "capabilities:NAME",
	// "aggregate_instance_extra_specs:NAME", or NAME for both. A condition has the grammar of Nova's extra specs:
	//
	//	>= 4, == 4, != 4, <= 4       the value is a number that compares so with 4; "= 4" means ">= 4"
	//	s== a, s!= a, s< a, s>= a    the value, as a text, compares so with a; also s<= and s>
	//	<in> a                       the value contains a
	//	<all-in> a b                 the value contains each of them
	//	<or> a <or> b                the value is one of them
	//	a                            the value is a
	//
	// A value that is not a number meets no condition on numbers. No value meets a condition without a word after its
	// operator.
	Specs map[string]string `json:"specs,omitempty"`
	// Properties are the properties of the guest.
	Properties map[string]string `json:"properties,omitempty"`
	Platform   Platform          `json:"platform,omitzero"`
	Group      *Group            `json:"group,omitempty"`
	// Force: only these hosts are allowed. Ignore: these hosts are not allowed. Both ignore case. SameAs: the host must
	// be one of these hosts, because other consumers are there. NotWith: the host must not be one of these hosts. An
	// empty list has no effect.
	Force   []string `json:"force,omitempty"`
	Ignore  []string `json:"ignore,omitempty"`
	SameAs  []string `json:"same_as,omitempty"`
	NotWith []string `json:"not_with,omitempty"`
}

// Placement returns q. It makes a type that embeds a Request a [Requester].
func (q *Request) Placement() *Request { return q }

// Hosted is a host with a Provider.
type Hosted interface {
	Name() string
	Placement() *Provider
}

// Requester is a request with a Request.
type Requester interface{ Placement() *Request }

// nameRule is the form of the names of resource classes and traits, as in OpenStack.
var nameRule = regexp.MustCompile(`^[A-Z0-9_]{1,255}$`)

// check returns Invalid if a field of the provider is not valid, or the provider is too large to be stored.
func (p *Provider) check() error {
	if err := checkName("provider", p.ID); err != nil {
		return err
	}
	for class, i := range p.Inventories {
		switch {
		case !nameRule.MatchString(class):
			return fault.New(fault.Invalid, "provider %s: resource class %q: a name has only A-Z, 0-9 and _", p.ID, class)
		case i.Total < 0, i.Reserved < 0, i.Reserved > i.Total, i.Min < 0, i.Max < 0, i.Step < 0:
			return fault.New(fault.Invalid, "provider %s: %s: total %d, reserved %d, min %d, max %d, step %d: none may be negative, nor reserved above total",
				p.ID, class, i.Total, i.Reserved, i.Min, i.Max, i.Step)
		case !(i.Ratio >= 0) || float64(i.Total)*max(i.Ratio, 1) > math.MaxInt64/2:
			return fault.New(fault.Invalid, "provider %s: %s: total %d with the ratio %g: want a ratio of at least 0, and a capacity below 2^62", p.ID, class, i.Total, i.Ratio)
		}
	}
	for n, t := range p.Traits {
		switch {
		case !nameRule.MatchString(t):
			return fault.New(fault.Invalid, "provider %s: trait %q: a name has only A-Z, 0-9 and _", p.ID, t)
		case n > 0 && t <= p.Traits[n-1]:
			return fault.New(fault.Invalid, "provider %s: traits %s, %s: traits must be sorted and unique", p.ID, p.Traits[n-1], t)
		}
	}
	return checkSize("provider "+p.ID, p)
}

// maxData is the maximum size of a provider, and of an aggregate's metadata, as JSON, in bytes. It is checked here,
// because only MySQL rejects larger values.
const maxData = 1<<16 - 1

// checkSize returns Invalid if a value is too large to be stored.
func checkSize(what string, v any) error {
	raw, err := json.Marshal(v)
	if err == nil && len(raw) > maxData {
		err = fmt.Errorf("%d bytes as JSON, at most %d are allowed", len(raw), maxData)
	}
	if err != nil {
		return fault.New(fault.Invalid, "%s: %w", what, err)
	}
	return nil
}

// check returns Invalid if the aggregate cannot be stored.
func (a *Aggregate) check() error {
	if err := checkName("aggregate", a.Name); err != nil {
		return err
	}
	return checkSize("aggregate "+a.Name, a.Metadata)
}

// checkName returns Invalid if a name cannot be stored.
func checkName(what, s string) error {
	if s == "" || len(s) > 255 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
		return fault.New(fault.Invalid, "%s %q: a name has 1 to 255 bytes, and no control characters", what, s)
	}
	return nil
}
