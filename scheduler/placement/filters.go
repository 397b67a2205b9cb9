package placement

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/scheduler"
)

// Options configure [Filters] and [Weighers]. The zero value has the defaults.
type Options struct {
	// DownAfter is the heartbeat timeout of a provider. Default 1 minute, as for Nova's service_down_time.
	DownAfter time.Duration
	// MaxTasks and MaxConsumers are limits of a host: a host with so many tasks or consumers gets no new consumer. Defaults
	// 8 and 50, as for Nova's max_io_ops_per_host and max_instances_per_host. Metadata with Nova's names in an aggregate of the
	// host replace the limits. If several aggregates have such metadata, the lowest number counts.
	MaxTasks, MaxConsumers int64
	// PropertyPrefix limits the filter "aggregate_properties" to metadata whose names begin with the prefix. Default:
	// all metadata.
	PropertyPrefix string
	// Multipliers replace the weighers' usual multipliers, by the weigher's name.
	Multipliers map[string]float64
}

func (o Options) withDefaults() Options {
	if o.DownAfter == 0 {
		o.DownAfter = time.Minute
	}
	if o.MaxTasks == 0 {
		o.MaxTasks = 8
	}
	if o.MaxConsumers == 0 {
		o.MaxConsumers = 50
	}
	return o
}

// A judge returns a filter's verdict on a provider. A function of type prepare returns the judge for a request, or nil if the filter does
// not apply to the request.
type (
	judge   = func(*Provider) scheduler.Verdict
	prepare = func(*Request) judge
)

// filter is a [scheduler.Filter] for providers.
type filter[R Requester, H Hosted] struct {
	name    string
	prepare prepare
}

func (f filter[R, H]) Name() string { return f.name }

func (f filter[R, H]) Prepare(_ context.Context, req R, _ []H) (func(H) scheduler.Verdict, error) {
	j := f.prepare(req.Placement())
	if j == nil {
		return nil, nil //nolint:nilnil // the filter does not apply
	}
	if f, ok := any(j).(func(H) scheduler.Verdict); ok { // H is *Provider itself
		return f, nil
	}
	return func(h H) scheduler.Verdict { return j(h.Placement()) }, nil
}

// Filters returns all filters of this package. Their order suits most components: filters that are cheap or reject
// many hosts come first. scheduler.ByName selects filters. docs/scheduling.md lists the names of the filters, and Nova's
// names for them.
//
// A filter rejects no host if it does not apply to the request.
func Filters[R Requester, H Hosted](o Options) []scheduler.Filter[R, H] {
	o = o.withDefaults()
	return []scheduler.Filter[R, H]{
		filter[R, H]{"forced", forcedHosts},
		filter[R, H]{"ignored", ignoredHosts},
		filter[R, H]{"disabled", disabledHosts},
		filter[R, H]{"down", o.down},
		filter[R, H]{"zone", zoneOnly},
		filter[R, H]{VCPU, roomFor(VCPU)},
		filter[R, H]{MemoryMB, roomFor(MemoryMB)},
		filter[R, H]{DiskGB, roomFor(DiskGB)},
		filter[R, H]{"resources", roomForOthers},
		filter[R, H]{"traits", requiredTraits},
		filter[R, H]{"platform", samePlatform},
		filter[R, H]{"capabilities", matchCapabilities},
		filter[R, H]{"aggregate_tenant", aggregateTenant},
		filter[R, H]{"aggregate_type", aggregateType},
		filter[R, H]{"aggregate_specs", aggregateSpecs},
		filter[R, H]{"aggregate_properties", o.aggregateProperties},
		filter[R, H]{"same_host", sameHost},
		filter[R, H]{"different_host", differentHost},
		affinityFilter[R, H]{},
		filter[R, H]{"anti_affinity", antiAffinity},
		filter[R, H]{"tasks", o.tasks},
		filter[R, H]{"consumers", o.consumers},
	}
}

func forcedHosts(q *Request) judge {
	if len(q.Force) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		if hasName(q.Force, p.ID) {
			return scheduler.Pass
		}
		return scheduler.Reject("not one of the hosts that the request forces")
	}
}

func ignoredHosts(q *Request) judge {
	if len(q.Ignore) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		if hasName(q.Ignore, p.ID) {
			return scheduler.Reject("the request ignores this host")
		}
		return scheduler.Pass
	}
}

// hasName reports whether the list has the ID. It ignores case, as Nova does for forced and ignored hosts.
func hasName(list []string, id string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, id) })
}

func disabledHosts(*Request) judge {
	return func(p *Provider) scheduler.Verdict {
		if p.Disabled != "" {
			return scheduler.Reject(p.Disabled)
		}
		return scheduler.Pass
	}
}

func (o Options) down(*Request) judge {
	now := time.Now()
	return func(p *Provider) scheduler.Verdict {
		switch age := now.Sub(p.SeenAt); {
		case p.SeenAt.IsZero() || age.Abs() <= o.DownAfter:
			return scheduler.Pass
		case age < 0: // as in Nova, a heartbeat too far in the future does not count
			return scheduler.RejectNumbers("the last heartbeat is %d s in the future, at most %d s are allowed", int64(-age/time.Second), int64(o.DownAfter/time.Second))
		default:
			return scheduler.RejectNumbers("no heartbeat for %d s, down after %d s", int64(age/time.Second), int64(o.DownAfter/time.Second))
		}
	}
}

func zoneOnly(q *Request) judge {
	if q.Zone == "" {
		return nil
	}
	reason := scheduler.Reject("not in zone " + q.Zone)
	return func(p *Provider) scheduler.Verdict {
		if p.Zone != q.Zone {
			return reason
		}
		return scheduler.Pass
	}
}

// units are the units of resource classes, for reasons.
var units = map[string]string{MemoryMB: " MiB", DiskGB: " GiB"}

// roomFor returns the filter of one resource class.
func roomFor(class string) prepare {
	unit := units[class]
	text := "needs %d" + unit + ", %d" + unit + " free"
	return func(q *Request) judge {
		n := q.Resources[class]
		if n == 0 {
			return nil
		}
		return func(p *Provider) scheduler.Verdict {
			i, ok := p.Inventories[class]
			if free := freeOf(&i); n > free && ok {
				return scheduler.RejectNumbers(text, n, free)
			}
			if ok && i.Min|i.Max|i.Step == 0 {
				return scheduler.Pass
			}
			return roomRest(&i, ok, n)
		}
	}
}

// roomRest judges the rare cases of roomFor: no inventory, and the limits of one consumer.
func roomRest(i *Inventory, ok bool, n int64) scheduler.Verdict {
	if !ok {
		return scheduler.Reject("the host has none")
	}
	if format, bound := i.unit(n); format != "" {
		return scheduler.RejectNumbers(format, n, bound)
	}
	return scheduler.Pass
}

// roomForOthers returns the filter of all resource classes without a filter of their own.
func roomForOthers(q *Request) judge { //nolint:gocognit // see CONTRIBUTING.md
	type need struct {
		class, text string
		none        scheduler.Verdict
		n           int64
	}
	var needs []need
	for _, class := range slices.Sorted(maps.Keys(q.Resources)) {
		if n := q.Resources[class]; n != 0 && class != VCPU && class != MemoryMB && class != DiskGB {
			needs = append(needs, need{class, class + ": needs %d, %d free", scheduler.Reject("has no " + class), n})
		}
	}
	if len(needs) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		for k := range needs {
			w := &needs[k]
			i, ok := p.Inventories[w.class]
			if !ok {
				return w.none
			}
			if free := freeOf(&i); w.n > free {
				return scheduler.RejectNumbers(w.text, w.n, free)
			}
			if format, bound := i.unit(w.n); format != "" {
				return scheduler.RejectNumbers(w.class+": "+format, w.n, bound)
			}
		}
		return scheduler.Pass
	}
}

func requiredTraits(q *Request) judge {
	if len(q.Required)+len(q.Forbidden) == 0 {
		return nil
	}
	missing := newRejections("trait %s is missing", q.Required)
	present := newRejections("trait %s is forbidden", q.Forbidden)
	return func(p *Provider) scheduler.Verdict {
		for i, t := range q.Required {
			if !p.Has(t) {
				return missing[i]
			}
		}
		for i, t := range q.Forbidden {
			if p.Has(t) {
				return present[i]
			}
		}
		return scheduler.Pass
	}
}

// newRejections returns a rejection for each name in the parameter of. The rejections are made once for a decision,
// instead of once for each host.
func newRejections(format string, of []string) []scheduler.Verdict {
	out := make([]scheduler.Verdict, len(of))
	for i, s := range of {
		out[i] = scheduler.Reject(format, s)
	}
	return out
}

func samePlatform(q *Request) judge {
	want := q.Platform
	if want == (Platform{}) {
		return nil
	}
	reason := scheduler.Reject("cannot run " + strings.Join(slices.DeleteFunc([]string{want.Arch, want.Type, want.Mode}, func(s string) bool { return s == "" }), " "))
	return func(p *Provider) scheduler.Verdict {
		if slices.ContainsFunc(p.Platforms, func(have Platform) bool { return have.runs(want) }) {
			return scheduler.Pass
		}
		return reason
	}
}

// runs reports whether a provider with this platform runs the guest. An empty field of guest means any.
func (p Platform) runs(guest Platform) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return is(guest.Arch, p.Arch) && is(guest.Type, p.Type) && is(guest.Mode, p.Mode)
}

// Scopes of specs. A filter applies the specs with its scope, and the specs without a scope.
const (
	scopeCapabilities = "capabilities:"
	scopeAggregates   = "aggregate_instance_extra_specs:"
)

// spec is a condition of a request.
type spec struct {
	key, want      string
	missing, wrong scheduler.Verdict
}

// specsOf returns the conditions of one scope and, as in Nova, those without a scope.
func specsOf(q *Request, scope string) (out []spec) {
	for _, k := range slices.Sorted(maps.Keys(q.Specs)) {
		key, ok := strings.CutPrefix(k, scope)
		if ok || !strings.Contains(k, ":") {
			out = append(out, spec{key, q.Specs[k], scheduler.Reject("has no " + key), scheduler.Reject(key + " is not " + q.Specs[k])})
		}
	}
	return out
}

func matchCapabilities(q *Request) judge {
	list := specsOf(q, scopeCapabilities)
	if len(list) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		for i := range list {
			have, ok := p.Capabilities[list[i].key]
			if !ok {
				return list[i].missing
			}
			if !matchesSpec(have, list[i].want) {
				return list[i].wrong
			}
		}
		return scheduler.Pass
	}
}

func aggregateSpecs(q *Request) judge {
	list := specsOf(q, scopeAggregates)
	if len(list) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		for i := range list {
			found, match := p.metadata(list[i].key, func(v string) bool { return matchesSpec(v, list[i].want) })
			if !found {
				return list[i].missing
			}
			if !match {
				return list[i].wrong
			}
		}
		return scheduler.Pass
	}
}

// metadata reports whether an aggregate of the provider has a key, and whether the function right accepts one of the key's
// values. The metadata may be a list of values, separated by commas.
func (p *Provider) metadata(key string, right func(string) bool) (found, ok bool) {
	for _, a := range p.Aggregates {
		list, has := a.Metadata[key]
		if !has {
			continue
		}
		found = true
		for v := range strings.SplitSeq(list, ",") {
			if right(strings.TrimSpace(v)) {
				return true, true
			}
		}
	}
	return found, false
}

func aggregateTenant(q *Request) judge {
	return func(p *Provider) scheduler.Verdict {
		mine := func(v string) bool { return v == q.Tenant }
		found := false
		for _, a := range p.Aggregates {
			for key := range a.Metadata {
				if !strings.HasPrefix(key, "filter_tenant_id") {
					continue
				}
				if _, ok := p.metadata(key, mine); ok {
					return scheduler.Pass
				}
				found = true
			}
		}
		if found {
			return scheduler.Reject("only for other tenants")
		}
		return scheduler.Pass
	}
}

func aggregateType(q *Request) judge {
	if q.Type == "" {
		return nil
	}
	reason := scheduler.Reject("not for " + q.Type)
	return func(p *Provider) scheduler.Verdict {
		if found, ok := p.metadata("instance_type", func(v string) bool { return v == q.Type }); found && !ok {
			return reason
		}
		return scheduler.Pass
	}
}

func (o Options) aggregateProperties(q *Request) judge {
	if len(q.Properties) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		for _, a := range p.Aggregates {
			for key := range a.Metadata {
				want, asked := q.Properties[key]
				if !asked || want == "" || !strings.HasPrefix(key, o.PropertyPrefix) {
					continue
				}
				if _, ok := p.metadata(key, func(v string) bool { return v == want }); !ok {
					return scheduler.Reject("not for %s = %s", key, want)
				}
			}
		}
		return scheduler.Pass
	}
}

func sameHost(q *Request) judge {
	if len(q.SameAs) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		if slices.Contains(q.SameAs, p.ID) {
			return scheduler.Pass
		}
		return scheduler.Reject("not one of the hosts that the request must share")
	}
}

func differentHost(q *Request) judge {
	if len(q.NotWith) == 0 {
		return nil
	}
	return func(p *Provider) scheduler.Verdict {
		if slices.Contains(q.NotWith, p.ID) {
			return scheduler.Reject("has a consumer that the request must not share a host with")
		}
		return scheduler.Pass
	}
}

// affinityFilter passes only the hosts with members of the request's group, if any host has one.
type affinityFilter[R Requester, H Hosted] struct{}

func (affinityFilter[R, H]) Name() string { return "affinity" }

func (affinityFilter[R, H]) Prepare(_ context.Context, req R, hosts []H) (func(H) scheduler.Verdict, error) {
	g := req.Placement().Group
	if g == nil || g.Policy != Affinity {
		return nil, nil //nolint:nilnil // the filter does not apply
	}
	if len(g.Members) == 0 && !slices.ContainsFunc(hosts, func(h H) bool { return h.Placement().Members[g.ID] > 0 }) {
		return nil, nil //nolint:nilnil // the first member may be anywhere
	}
	return func(h H) scheduler.Verdict {
		if p := h.Placement(); g.Members[p.ID] > 0 || p.Members[g.ID] > 0 {
			return scheduler.Pass
		}
		return scheduler.Reject("the group is on another host")
	}, nil
}

func antiAffinity(q *Request) judge {
	if q.Group == nil || q.Group.Policy != AntiAffinity {
		return nil
	}
	most := max(q.Group.MaxPerHost, 1)
	return func(p *Provider) scheduler.Verdict {
		if n := max(q.Group.Members[p.ID], p.Members[q.Group.ID]); n >= most {
			return scheduler.RejectNumbers("has %d of the group, at most %d", n, most)
		}
		return scheduler.Pass
	}
}

func (o Options) tasks(*Request) judge {
	return func(p *Provider) scheduler.Verdict {
		if most := p.limit("max_io_ops_per_host", o.MaxTasks); p.Tasks >= most {
			return scheduler.RejectNumbers("%d operations with much I/O run, the limit is %d", p.Tasks, most)
		}
		return scheduler.Pass
	}
}

func (o Options) consumers(*Request) judge {
	return func(p *Provider) scheduler.Verdict {
		if most := p.limit("max_instances_per_host", o.MaxConsumers); p.Consumers >= most {
			return scheduler.RejectNumbers("has %d consumers, the limit is %d", p.Consumers, most)
		}
		return scheduler.Pass
	}
}

// limit returns the lowest number that the provider's aggregates have for the key. Without such a number it returns the
// parameter otherwise.
func (p *Provider) limit(key string, otherwise int64) int64 {
	if len(p.Aggregates) == 0 {
		return otherwise
	}
	least, found := int64(0), false
	p.metadata(key, func(v string) bool {
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && (!found || n < least) {
			least, found = n, true
		}
		return false
	})
	if found {
		return least
	}
	return otherwise
}
