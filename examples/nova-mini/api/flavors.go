package api

import (
	"context"
	"encoding/json"
	"net/http"
	"regexp"

	"github.com/google/uuid"

	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

type flavorBrief struct {
	ID    string     `json:"id"`
	Name  string     `json:"name"`
	Links []api.Link `json:"links"`
}

type flavorView struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	RAM       int        `json:"ram"`
	Disk      int        `json:"disk"`
	Swap      any        `json:"swap"` // "" for none, until microversion 2.75
	Ephemeral int        `json:"OS-FLV-EXT-DATA:ephemeral"`
	Disabled  bool       `json:"OS-FLV-DISABLED:disabled"`
	VCPUs     int        `json:"vcpus"`
	Public    bool       `json:"os-flavor-access:is_public"`
	RxTx      float64    `json:"rxtx_factor"`
	Links     []api.Link `json:"links"`
}

func viewFlavor(r *http.Request, f *store.Flavor) flavorView {
	v := flavorView{
		ID: f.ID, Name: f.Name, RAM: f.MemoryMiB, Disk: f.DiskGiB, Swap: "", Ephemeral: f.EphemeralGiB,
		VCPUs: f.VCPUs, Public: f.Public, RxTx: f.RxTxFactor, Links: links(r, "flavors", f.ID),
	}
	if f.SwapMiB > 0 {
		v.Swap = f.SwapMiB
	}
	return v
}

type flavorPage[T any] struct {
	Flavors []T        `json:"flavors"`
	Links   []api.Link `json:"flavors_links,omitempty"`
}

func flavorList[T any](ctx context.Context, s *server, r *http.Request, view func(*store.Flavor) T) (flavorPage[T], error) {
	out := flavorPage[T]{Flavors: []T{}}
	p, err := pages.Read(r)
	if err != nil {
		return out, err
	}
	list, err := s.cfg.Store.Flavors(ctx, p.Marker, p.Limit)
	if err != nil {
		return out, err
	}
	for i := range list {
		out.Flavors = append(out.Flavors, view(&list[i]))
		out.Links = p.Next(r, len(list), list[i].ID)
	}
	return out, nil
}

func (s *server) listFlavors(ctx context.Context, r *api.Request[api.None]) (flavorPage[flavorBrief], error) {
	return flavorList(ctx, s, r.Request, func(f *store.Flavor) flavorBrief {
		return flavorBrief{ID: f.ID, Name: f.Name, Links: links(r.Request, "flavors", f.ID)}
	})
}

func (s *server) listFlavorDetails(ctx context.Context, r *api.Request[api.None]) (flavorPage[flavorView], error) {
	return flavorList(ctx, s, r.Request, func(f *store.Flavor) flavorView { return viewFlavor(r.Request, f) })
}

func (s *server) showFlavor(ctx context.Context, r *api.Request[api.None]) (map[string]flavorView, error) {
	f, err := s.cfg.Store.Flavor(ctx, r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return map[string]flavorView{"flavor": viewFlavor(r.Request, f)}, nil
}

type createFlavor struct {
	Flavor *newFlavor `json:"flavor"`
}

type newFlavor struct {
	Name      *string         `json:"name"`
	ID        json.RawMessage `json:"id"` // text or a number, null or "auto" for a UUID
	RAM       *int            `json:"ram"`
	VCPUs     *int            `json:"vcpus"`
	Disk      *int            `json:"disk"`
	Swap      int             `json:"swap"`
	Ephemeral int             `json:"OS-FLV-EXT-DATA:ephemeral"`
	RxTx      *float64        `json:"rxtx_factor"`
	Public    *bool           `json:"os-flavor-access:is_public"`
}

var flavorID = regexp.MustCompile(`^[a-zA-Z0-9. _-]{1,255}$`)

// Validate implements api.Validator.
func (b *createFlavor) Validate() error {
	f := b.Flavor
	if f == nil {
		return api.Missing("flavor")
	}
	switch {
	case f.Name == nil:
		return api.Missing("name")
	case f.RAM == nil:
		return api.Missing("ram")
	case f.VCPUs == nil:
		return api.Missing("vcpus")
	case f.Disk == nil:
		return api.Missing("disk")
	case *f.Name == "" || len(*f.Name) > 255:
		return invalid("name", *f.Name, "its length must be 1 to 255")
	}
	for _, c := range []struct {
		field  string
		n, min int
	}{{"ram", *f.RAM, 1}, {"vcpus", *f.VCPUs, 1}, {"disk", *f.Disk, 0}, {"swap", f.Swap, 0}, {"OS-FLV-EXT-DATA:ephemeral", f.Ephemeral, 0}} {
		if c.n < c.min {
			return invalid(c.field, c.n, "%d is less than the minimum of %d", c.n, c.min)
		}
		if c.n > maxInt {
			return invalid(c.field, c.n, "%d is greater than the maximum of %d", c.n, maxInt)
		}
	}
	return nil
}

// maxInt is the largest number in a flavor, MySQL's and Nova's.
const maxInt = 0x7FFFFFFF

// invalid words an error as Nova's schemas do.
func invalid(field string, value any, format string, args ...any) error {
	return fault.New(fault.Invalid, "Invalid input for field/attribute %s. Value: %v. "+format, append([]any{field, value}, args...)...)
}

func (s *server) createFlavor(ctx context.Context, r *api.Request[createFlavor]) (map[string]flavorView, error) {
	in := r.Body.Flavor
	f := &store.Flavor{
		Name: *in.Name, VCPUs: *in.VCPUs, MemoryMiB: *in.RAM, DiskGiB: *in.Disk,
		EphemeralGiB: in.Ephemeral, SwapMiB: in.Swap, RxTxFactor: 1, Public: true,
	}
	if in.RxTx != nil {
		f.RxTxFactor = *in.RxTx
	}
	if in.Public != nil {
		f.Public = *in.Public
	}
	var err error
	if f.ID, err = readFlavorID(in.ID); err != nil {
		return nil, err
	}
	if err := s.cfg.Store.CreateFlavor(ctx, f); err != nil {
		return nil, err
	}
	return map[string]flavorView{"flavor": viewFlavor(r.Request, f)}, nil
}

func readFlavorID(raw json.RawMessage) (string, error) {
	var v any
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &v); err != nil {
			return "", invalid("id", string(raw), "it is not JSON")
		}
	}
	id := ""
	switch x := v.(type) {
	case nil:
		return uuid.NewString(), nil
	case string:
		id = x
	case float64:
		id = string(raw)
	}
	if id == "auto" {
		return uuid.NewString(), nil
	}
	if !flavorID.MatchString(id) {
		return "", invalid("id", string(raw), "it must be 1 to 255 letters, digits, dots, dashes, underscores and spaces")
	}
	return id, nil
}

func (s *server) deleteFlavor(ctx context.Context, r *api.Request[api.None]) (api.None, error) {
	r.Status = http.StatusAccepted
	return api.None{}, s.cfg.Store.DeleteFlavor(ctx, r.PathValue("id"))
}
