package scheduler_test

import (
	"context"
	"fmt"
	"time"

	"github.com/armature-go/armature/scheduler"
)

// Node is a host of a component.
type Node struct {
	Host string
	Free int // MiB
	At   time.Time
}

// Name implements scheduler.Host.
func (n *Node) Name() string { return n.Host }

// ReportedAt implements scheduler.Reported.
func (n *Node) ReportedAt() time.Time { return n.At }

// with returns a copy of the node that has mib MiB less free memory.
func (n *Node) with(mib int) *Node { return &Node{n.Host, n.Free - mib, n.At} }

var enough = scheduler.FilterFunc("memory", func(mib int, n *Node) scheduler.Verdict {
	if n.Free < mib {
		return scheduler.RejectNumbers("needs %d MiB, %d MiB free", mib, n.Free)
	}
	return scheduler.Pass
})

func nodes() *scheduler.Scheduler[int, *Node] {
	s, err := scheduler.New(scheduler.Config[int, *Node]{
		Filters: []scheduler.Filter[int, *Node]{scheduler.Fresh[int, *Node](time.Minute), enough},
		Weighers: []scheduler.Weighted[int, *Node]{{
			Weigher:    scheduler.WeigherFunc("free", func(_ int, n *Node) float64 { return float64(n.Free) }),
			Multiplier: 1,
		}},
	})
	if err != nil {
		panic(err)
	}
	return s
}

// Hosts report their state, and decisions use the last reports.
func ExampleFleet() {
	ctx, now := context.Background(), time.Now()
	var fleet scheduler.Fleet[*Node]
	fleet.Report(
		&Node{"node-1", 2048, now},
		&Node{"node-2", 8192, now.Add(-time.Hour)}, // no report for an hour
		&Node{"node-3", 1024, now},
	)
	s := nodes()
	d, err := s.Rank(ctx, 1500, fleet.Hosts())
	fmt.Println(d.Ranked[0].Host.Host, err)
	for _, r := range d.Rejected() {
		fmt.Println(r.Host, r.Filter+":", r.Reason)
	}

	// The claim counts although the next report has not come yet.
	fleet.Update("node-1", func(n *Node) *Node { return n.with(1500) })
	_, err = s.Rank(ctx, 1500, fleet.Hosts())
	fmt.Println(err)
	// Output:
	// node-1 <nil>
	// node-2 stale: the last report is 3600 s old, at most 60 s are allowed
	// node-3 memory: needs 1500 MiB, 1024 MiB free
	// no valid host: 0 of 3 hosts: 2 memory, 1 stale
}

// Four equal requests, where each choice takes the earlier choices into account, cost
// little more than one request.
func ExampleScheduler_RankMany() {
	now := time.Now()
	hosts := []*Node{{"node-1", 2500, now}, {"node-2", 4000, now}}
	b, err := nodes().RankMany(context.Background(), 1000, hosts, 4, func(n *Node) *Node { return n.with(1000) })
	for _, h := range b.Hosts {
		fmt.Print(h.Host, " ")
	}
	fmt.Println(err)

	b, err = nodes().RankMany(context.Background(), 1000, hosts, 7, func(n *Node) *Node { return n.with(1000) })
	fmt.Println(len(b.Hosts), err)
	// Output:
	// node-2 node-2 node-1 node-2 <nil>
	// 6 no valid host for 1 of 7 requests: 0 of 2 hosts: 2 memory
}
