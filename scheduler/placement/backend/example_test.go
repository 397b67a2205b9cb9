package backend_test

import (
	"context"
	"fmt"

	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement/backend"
)

// Two storage backends, one of which says by a formula of its own what it takes.
func Example() {
	s, err := scheduler.New(scheduler.Config[*backend.Request, *backend.Backend]{
		Filters:  backend.Filters[*backend.Request, *backend.Backend](),
		Weighers: backend.Weighers[*backend.Request, *backend.Backend](),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	hosts := []*backend.Backend{
		{ID: "a@fast", TotalGB: 1000, FreeGB: 800},
		{ID: "b@small", TotalGB: 1000, FreeGB: 900, Filter: "volume.size < 10"},
	}
	d, err := s.Rank(context.Background(), &backend.Request{SizeGB: 100}, hosts)
	fmt.Println(d.Ranked[0].Host.ID, err)
	for _, r := range d.Rejected() {
		fmt.Println(r.Host, r.Filter+":", r.Reason)
	}
	// Output:
	// a@fast <nil>
	// b@small driver: its formula says no: volume.size < 10
}
