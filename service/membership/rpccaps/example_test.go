package rpccaps_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/rpc/membus"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// must ends an example after an error.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// While a member of the previous release counts, the client sends no message that this
// member does not know.
func Example() {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: "sqlite:///:memory:"})
	must(err)
	defer d.Close()
	must(db.Migrate(ctx, d, membership.Migrations))
	members := membership.New(membership.Config{DB: d})
	bus := membus.New()
	defer bus.Close()

	snapshots := &rpc.Interface{Name: "snapshots", Version: rpc.Version{Major: 1, Minor: 1}}
	clone := rpc.Define(rpc.Method[string, rpc.None]{Interface: snapshots, Name: "clone", Since: rpc.Version{Major: 1, Minor: 1}})
	server := rpc.NewServer(bus, rpc.ServerConfig{Interface: snapshots, Host: "node-1"})
	rpc.Handle(server, clone, func(context.Context, *string) (*rpc.None, error) { return &rpc.None{}, nil })
	member := members.Member(membership.MemberConfig{Self: membership.Self{Kind: "snapshots", Host: "node-1", Interfaces: rpccaps.Of(server)}})
	client := rpc.NewClient(bus, rpc.ClientConfig{AutoCaps: rpccaps.New(rpccaps.Config{Members: members}).Read})
	defer client.Close()

	// A service.App starts the parts in this order.
	must(member.Announcement().Start(ctx))
	must(server.Start(ctx))
	must(member.Start(ctx))
	// A process of the previous release runs on node-2.
	must(members.Join(ctx, membership.Self{Kind: "snapshots", Host: "node-2"}))

	name := "monday"
	_, err = rpc.Call(ctx, client, clone, "node-1", &name)
	fmt.Println(errors.Is(err, rpc.ErrVersionCap), client.Allows(snapshots, clone.Since))

	must(members.Leave(ctx, "snapshots", "node-2", "")) // to be upgraded
	must(client.Reload(ctx))                            // without this call the client learns of the change within 10 s
	_, err = rpc.Call(ctx, client, clone, "node-1", &name)
	fmt.Println(err, client.Allows(snapshots, clone.Since))
	must(member.Stop(ctx))
	must(server.Stop(ctx))
	must(member.Announcement().Stop(ctx))
	// Output:
	// true false
	// <nil> true
}
