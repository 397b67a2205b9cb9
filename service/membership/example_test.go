package membership_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/service"
	"github.com/armature-go/armature/service/membership"
)

// openMembers returns a migrated database in memory.
func openMembers(ctx context.Context) *sqlx.DB {
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	if err == nil {
		err = db.Migrate(ctx, d, migrations...)
	}
	if err != nil {
		panic(err)
	}
	return d
}

// must ends an example after an error.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// A service joins and sends heartbeats. Other services see whether it is up. If it is
// not up, they see the reason.
func Example() {
	ctx := context.Background()
	d := openMembers(ctx)
	defer d.Close()
	r := membership.New(membership.Config{DB: d})

	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-1", Version: 3}))
	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-2", Version: 3}))
	must(r.Heartbeat(ctx, "volume-worker", "node-1", ""))
	must(r.Leave(ctx, "volume-worker", "node-2", ""))

	list, err := r.List(ctx, "volume-worker")
	must(err)
	for _, m := range list {
		fmt.Printf("%s: up %t %q\n", m.Host, m.Up, m.Why)
	}
	// Output:
	// node-1: up true ""
	// node-2: up false "it was stopped"
}

// In a process the member is a part of the App. It joins after all earlier parts have
// started, and leaves before these parts stop.
func ExampleRegistry_Member() {
	ctx, stop := context.WithCancel(context.Background())
	d := openMembers(ctx)
	defer d.Close()
	r := membership.New(membership.Config{DB: d})
	quiet := slog.New(slog.DiscardHandler)

	app := service.New(service.Config{Name: "volume-worker", NoSignals: true, Logger: quiet})
	app.Add("member", r.Member(membership.MemberConfig{Self: membership.Self{Kind: "volume-worker", Host: "node-1"}, Logger: quiet}))
	go func() {
		<-app.Started()
		m, err := r.Get(ctx, "volume-worker", "node-1")
		fmt.Println("running: up is", m.Up, err)
		stop()
	}()
	must(app.Run(ctx))
	m, err := r.Get(context.WithoutCancel(ctx), "volume-worker", "node-1")
	fmt.Println("stopped: up is", m.Up, err)
	// Output:
	// running: up is true <nil>
	// stopped: up is false <nil>
}

// An operator disables a member before a repair of its host. The member continues its
// work but gets no new work.
func ExampleRegistry_Disable() {
	ctx := context.Background()
	d := openMembers(ctx)
	defer d.Close()
	r := membership.New(membership.Config{DB: d})
	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-1"}))

	must(r.Disable(ctx, "volume-worker", "node-1", "a new fan"))
	m, err := r.Get(ctx, "volume-worker", "node-1")
	must(err)
	fmt.Println(m.Up, m.Unfit())
	must(r.ForceDown(ctx, "volume-worker", "node-1", true)) // the member's host was switched off
	m, err = r.Get(ctx, "volume-worker", "node-1")
	must(err)
	fmt.Println(m.Up, m.Unfit())
	// Output:
	// true disabled: a new fan
	// false an operator has forced it down
}

// During an upgrade, other services use only what the oldest member supports.
func ExampleRegistry_MinVersion() {
	ctx := context.Background()
	d := openMembers(ctx)
	defer d.Close()
	r := membership.New(membership.Config{DB: d})
	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-1", Version: 4}))
	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-2", Version: 3}))

	fmt.Println(r.MinVersion(ctx, "volume-worker"))
	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-2", Version: 4})) // it was upgraded
	fmt.Println(r.MinVersion(ctx, "volume-worker"))
	// Output:
	// 3 <nil>
	// 4 <nil>
}

// A host has one worker. While a first process is up, a second process is refused. A
// process that replaces a killed process on the same machine is accepted at once,
// because it holds the lock of the file.
func ExampleFileLock() {
	ctx := context.Background()
	d := openMembers(ctx)
	defer d.Close()
	r := membership.New(membership.Config{DB: d})
	dir, err := os.MkdirTemp("", "example")
	must(err)
	defer func() { must(os.RemoveAll(dir)) }()

	first := membership.NewFileLock("volume-worker", "node-1", filepath.Join(dir, "node-1.lock"))
	must(first.Start(ctx))
	must(r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-1", Instance: first.Instance()}))

	elsewhere := membership.Instance{ID: "another machine"}
	err = r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-1", Instance: elsewhere})
	fmt.Println("another process:", err != nil)

	must(first.Stop(ctx)) // stands for the kernel, which releases the lock when the process is killed
	second := membership.NewFileLock("volume-worker", "node-1", filepath.Join(dir, "node-1.lock"))
	must(second.Start(ctx))
	fmt.Println("the next process:", r.Join(ctx, membership.Self{Kind: "volume-worker", Host: "node-1", Instance: second.Instance()}))
	fmt.Println("the first process's heartbeat:", r.Heartbeat(ctx, "volume-worker", "node-1", first.Instance().ID) != nil)
	// Output:
	// another process: true
	// the next process: <nil>
	// the first process's heartbeat: true
}
