package api

import (
	"cmp"
	"context"
	"strings"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/reqctx"
	"github.com/armature-go/armature/service/api"
)

// The names of the rules, as in Nova.
const (
	ruleLimits      = "os_compute_api:limits"
	ruleOtherLimits = "os_compute_api:limits:other_project"
)

var limitRules = []rule{
	{ruleLimits, "@", "Show the limits of the project", "GET", "/limits"},
	{ruleOtherLimits, "rule:context_is_admin", "Show the limits of another project", "GET", "/limits"},
}

func (s *server) limitRoutes(all, _ *api.Group) {
	api.HandleRoute(all, api.Route{
		Pattern: "GET /limits", Rule: ruleLimits, Summary: "Show the limits and the usage of a project", Query: queryOf("tenant_id"),
	}, s.showLimits)
}

// queryOf returns the schemas of a query whose parameters are texts. Since [strictSince] other parameters are refused.
func queryOf(names ...string) []api.Schema {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = `"` + name + `": {"type": "array", "items": {"type": "string"}}`
	}
	properties := strings.Join(list, ", ")
	return []api.Schema{
		{Max: "2.74", JSON: `{"type": "object", "properties": {` + properties + `}}`},
		{Min: strictSince, JSON: `{"type": "object", "properties": {` + properties + `}, "additionalProperties": false}`},
	}
}

type limitReply struct {
	Limits struct {
		Rate     alwaysEmptyList `json:"rate"`
		Absolute absoluteLimits  `json:"absolute"`
	} `json:"limits"`
}

// absoluteLimits are the limits and the usage of a project. The value -1 means no limit. Nova no longer limits security groups and floating IPs, so their limits are always -1.
type absoluteLimits struct {
	MaxInstances    int64 `json:"maxTotalInstances" min:"-1"`
	MaxCores        int64 `json:"maxTotalCores" min:"-1"`
	MaxRAM          int64 `json:"maxTotalRAMSize" min:"-1"`
	MaxServerMeta   int64 `json:"maxServerMeta" min:"-1"`
	MaxImageMeta    int64 `json:"maxImageMeta" min:"-1" until:"2.38"`
	MaxKeyPairs     int64 `json:"maxTotalKeypairs" min:"-1"`
	MaxGroups       int64 `json:"maxServerGroups" min:"-1"`
	MaxGroupMembers int64 `json:"maxServerGroupMembers" min:"-1"`
	MaxFiles        int64 `json:"maxPersonality" min:"-1" until:"2.56"`
	MaxFileSize     int64 `json:"maxPersonalitySize" min:"-1" until:"2.56"`
	MaxSecGroups    int64 `json:"maxSecurityGroups" min:"-1" until:"2.35"`
	MaxSecRules     int64 `json:"maxSecurityGroupRules" min:"-1" until:"2.35"`
	MaxFloatingIPs  int64 `json:"maxTotalFloatingIps" min:"-1" until:"2.35"`

	Instances   int64 `json:"totalInstancesUsed" min:"0"`
	Cores       int64 `json:"totalCoresUsed" min:"0"`
	RAM         int64 `json:"totalRAMUsed" min:"0"`
	Groups      int64 `json:"totalServerGroupsUsed" min:"0"`
	SecGroups   int64 `json:"totalSecurityGroupsUsed" min:"0" until:"2.35"`
	FloatingIPs int64 `json:"totalFloatingIpsUsed" min:"0" until:"2.35"`
}

func (s *server) showLimits(ctx context.Context, r *api.Request[api.None]) (out limitReply, err error) {
	project := reqctx.From(ctx).ProjectID
	if q := r.URL.Query(); q.Has("tenant_id") {
		if err := s.mux.Enforce(ctx, ruleOtherLimits, nil); err != nil {
			return out, err
		}
		project = cmp.Or(lastValue(q, "tenant_id"), project)
	}
	limits := s.cfg.Store.Limits()
	used, err := s.cfg.Store.Usage(ctx, project)
	if err != nil {
		return out, err
	}
	out.Limits.Rate = alwaysEmptyList{}
	out.Limits.Absolute = absoluteLimits{
		MaxInstances: limits.Of(store.Instances), MaxCores: limits.Of(store.Cores), MaxRAM: limits.Of(store.RAM),
		MaxServerMeta: limits.Of(store.Metadata), MaxImageMeta: limits.Of(store.Metadata), MaxKeyPairs: limits.Of(store.KeyPairs),
		MaxGroups: limits.Of(store.ServerGroups), MaxGroupMembers: limits.Of(store.GroupMembers),
		MaxFiles: limits.Of(store.InjectedFiles), MaxFileSize: limits.Of(store.FileContentBytes), MaxSecGroups: -1, MaxSecRules: -1, MaxFloatingIPs: -1,
		Instances: used[store.Instances], Cores: used[store.Cores], RAM: used[store.RAM], Groups: used[store.ServerGroups],
	}
	return out, nil
}

// tooManyItems returns Denied if n is more than the limit of metadata items.
func (s *server) tooManyItems(n int) error {
	if most := s.cfg.Store.Limits().Of(store.Metadata); most >= 0 && int64(n) > most {
		return fault.New(fault.Denied, "Maximum number of metadata items exceeds %d", most)
	}
	return nil
}
