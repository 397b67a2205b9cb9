package component_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/component"
	"github.com/armature-go/armature/component/componenttest"
	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/testenv"
	"github.com/armature-go/armature/internal/waittest"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/operation"
)

type roomOptions struct{ component.Options }

// stay is the data of an operation that needs room on a host.
type stay struct {
	Guest string `json:"guest"`
	Waits bool   `json:"waits"`
	Host  string `json:"host"`
}

type stayRequest struct{ placement.Request }

var (
	innkeeper = &rpc.Interface{Name: "innkeeper", Version: v1}
	greet     = rpc.Define(rpc.Method[note, rpc.None]{Interface: innkeeper, Name: "greet", Since: v1})
	checkIn   = operation.Kind[stay]{Name: "check-in", Timeout: time.Minute}
	checkOut  = operation.Kind[stay]{Name: "check-out", Timeout: time.Minute}
)

// inn is a component whose hosts have two rooms each. The service house, which runs on each host, has no database.
func inn() component.Component[roomOptions] {
	return component.Component[roomOptions]{
		Name: "inn", Short: "Has rooms", Migrations: []db.Migrations{placement.Migrations},
		Services: []component.Service[roomOptions]{
			{Name: "desk", Wire: func(_ context.Context, p *component.Process[roomOptions]) error {
				pl := component.NewPlacement[*stayRequest](p, component.PlacementConfig[*stayRequest]{Kind: innkeeper.Name})
				place := func(ctx context.Context, op *operation.Op, s *stay) error {
					req := &stayRequest{placement.Request{Consumer: s.Guest, Resources: placement.Resources{"CUSTOM_ROOM": 1}}}
					find := func() (*component.Host, error) { return pl.Place(ctx, req) }
					if s.Waits {
						find = func() (*component.Host, error) { return pl.PlaceOrWait(ctx, op, req) }
					}
					h, err := find()
					if err == nil {
						s.Host = h.Name()
					}
					return err
				}
				operation.Handle(p.Runner(), checkIn, operation.Step[stay]{Name: "place", Do: place})
				operation.Handle(p.Runner(), checkOut, operation.Step[stay]{Name: "leave", DoTx: func(ctx context.Context, _ *sqlx.Tx, _ *operation.Op, s *stay) error {
					return pl.Release(ctx, p.DB, s.Guest)
				}})
				return nil
			}},
			{Name: "house", NoDatabase: true, Wire: func(_ context.Context, p *component.Process[roomOptions]) error {
				p.Serve(innkeeper, func(s *rpc.Server) {
					rpc.Handle(s, greet, func(context.Context, *note) (*rpc.None, error) { return nil, nil })
				})
				p.Resources(innkeeper.Name, func(context.Context) (*placement.Provider, error) {
					return &placement.Provider{Inventories: map[string]placement.Inventory{"CUSTOM_ROOM": {Total: 2}}}, nil
				})
				return nil
			}},
		},
	}
}

// TestPlacement: hosts are members with resources. If no host has room, Place fails with the reasons, and PlaceOrWait waits until a release or
// a new host frees room. Hosts that are down or disabled get no claims. The test runs with the bus in memory and SQLite, and with RabbitMQ and
// MariaDB.
func TestPlacement(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		testPlacement(t, componenttest.Start(t, inn(), "service_down_time=3"))
	})
	t.Run("broker", func(t *testing.T) {
		t.Parallel()
		testPlacement(t, componenttest.Start(t, inn(), "service_down_time=3", "transport_url="+envtest.URL(t, testenv.AMQPVar), "control_exchange=test-placement", "database.connection="+dbtest.MySQL(t)))
	})
}

func testPlacement(t *testing.T, c *componenttest.Cluster[roomOptions]) {
	t.Helper()
	begin := func(k operation.Kind[stay], s stay) {
		t.Helper()
		if err := component.Begin(t.Context(), c.Service("desk").Process(), k, s.Guest, &s, nil); err != nil {
			t.Fatal(err)
		}
	}
	open := func(guest string) bool {
		list, err := operation.NewStore(c.DB).List(t.Context(), operation.Filter{Resource: guest, Open: true})
		return err == nil && len(list) == 1 && list[0].StepName == "place"
	}
	wantHost := func(guest, host string) {
		t.Helper()
		if op := c.Wait(guest); op.State != operation.Succeeded {
			t.Fatalf("%s: %s %s", guest, op.State, op.Error)
		}
		if claims, err := placement.NewSQL(c.DB).Claims(t.Context(), guest); err != nil || claims[0].Host != host {
			t.Errorf("%s: %+v, %v, want %s", guest, claims, err, host)
		}
	}
	for _, guest := range []string{"ada", "bob"} {
		begin(checkIn, stay{Guest: guest})
		wantHost(guest, "host-1")
	}
	begin(checkIn, stay{Guest: "eve"})
	if op := c.Wait("eve"); op.State != operation.Failed || op.ErrorCode != "Exhausted" || !strings.Contains(op.Error, "0 of 1 hosts: 1 resources") {
		t.Errorf("without room: %s %s %s", op.State, op.ErrorCode, op.Error)
	}
	if log := c.Service("desk").Log(); !strings.Contains(log, `msg="no valid host"`) || !strings.Contains(log, "consumer=eve") {
		t.Error("the log has no event for the request without room")
	}
	begin(checkIn, stay{Guest: "cat", Waits: true})
	waittest.Until(t, "cat to wait", func() bool {
		return strings.Contains(c.Service("desk").Log(), "request waits for room") && open("cat")
	})
	begin(checkOut, stay{Guest: "ada"})
	if op := c.Wait("ada"); op.State != operation.Succeeded {
		t.Fatalf("%s %s", op.State, op.Error)
	}
	wantHost("cat", "host-1")

	begin(checkIn, stay{Guest: "dan", Waits: true})
	waittest.Until(t, "dan to wait", func() bool { return open("dan") })
	c.Service("desk").Kill() // a request that waits outlives its process
	c.Service("desk").Start()
	second := c.Add("house", "host-2")
	wantHost("dan", "host-2")

	if err := c.Service("desk").Process().Members.Disable(t.Context(), innkeeper.Name, "host-2", "a test"); err != nil {
		t.Fatal(err)
	}
	begin(checkIn, stay{Guest: "fay"})
	if op := c.Wait("fay"); op.State != operation.Failed || !strings.Contains(op.Error, "1 disabled") {
		t.Errorf("a disabled host: %s %s", op.State, op.Error)
	}
	if err := c.Service("desk").Process().Members.Enable(t.Context(), innkeeper.Name, "host-2"); err != nil {
		t.Fatal(err)
	}
	second.Kill()
	waittest.Until(t, "host-2 to be down", func() bool {
		m, err := c.Service("desk").Process().Members.Get(t.Context(), innkeeper.Name, "host-2")
		return err == nil && !m.Up
	})
	begin(checkIn, stay{Guest: "gil"})
	if op := c.Wait("gil"); op.State != operation.Failed || !strings.Contains(op.Error, "1 not_up") {
		t.Errorf("a host that is down: %s %s", op.State, op.Error)
	}
}

// lodge returns a component with one service. The function read returns the resources of its host. If host is not empty, the service reports
// for that host.
func lodge(host string, read func(context.Context) (*placement.Provider, error)) component.Component[roomOptions] {
	return component.Component[roomOptions]{
		Name: "lodge", Short: "Has rooms", Migrations: []db.Migrations{placement.Migrations},
		Services: []component.Service[roomOptions]{{Name: "lodge", Wire: func(_ context.Context, p *component.Process[roomOptions]) error {
			p.Serve(innkeeper, func(s *rpc.Server) {
				rpc.Handle(s, greet, func(context.Context, *note) (*rpc.None, error) { return nil, nil })
			})
			if host != "" {
				p = p.On(host)
			}
			p.Resources(innkeeper.Name, read)
			return nil
		}}},
	}
}

// TestResources: a change is reported, even if read returns the same provider with other contents. A host that is not a member cannot report. If read returns
// no provider, the error names the function.
func TestResources(t *testing.T) {
	t.Parallel()
	var total atomic.Int64
	total.Store(1)
	same := &placement.Provider{Inventories: map[string]placement.Inventory{}}
	c := componenttest.Start(t, lodge("", func(context.Context) (*placement.Provider, error) {
		same.Inventories["CUSTOM_ROOM"] = placement.Inventory{Total: total.Load()}
		return same, nil
	}))
	for _, want := range []int64{1, 7, 3} {
		total.Store(want)
		waittest.Until(t, "the report", func() bool {
			list, err := placement.NewSQL(c.DB).Providers(t.Context(), "host-1")
			return err == nil && len(list) == 1 && list[0].Inventories["CUSTOM_ROOM"].Total == want
		})
	}
	for want, broken := range map[string]component.Component[roomOptions]{
		"host ghost reports resources and is not a member of kind innkeeper": lodge("ghost", func(context.Context) (*placement.Provider, error) { return &placement.Provider{}, nil }),
		"Process.Resources has returned no provider":                         lodge("", func(context.Context) (*placement.Provider, error) { return nil, nil }), //nolint:nilnil // the mistake
	} {
		var log output
		env := []string{"OS_DEFAULT__HOST=h1", "OS_DEFAULT__STATE_PATH=" + t.TempDir()}
		if code := component.Run(t.Context(), broken, nil, env, io.Discard, &log); code != 1 || !strings.Contains(log.String(), want) {
			t.Errorf("%d %s, want %s", code, log.String(), want)
		}
	}
}

// TestResourcesTwice: the second report of one host would replace the first one, so it is a programmer's error.
func TestResourcesTwice(t *testing.T) {
	t.Parallel()
	read := func(context.Context) (*placement.Provider, error) { return &placement.Provider{}, nil }
	c := lodge("", read)
	wire := c.Services[0].Wire
	c.Services[0].Wire = func(ctx context.Context, p *component.Process[roomOptions]) error {
		if err := wire(ctx, p); err != nil {
			return err
		}
		p.Resources("other", read)
		return nil
	}
	defer func() {
		if text := fmt.Sprint(recover()); !strings.Contains(text, "the resources of host h1 are reported already") {
			t.Errorf("%s", text)
		}
	}()
	component.Run(t.Context(), c, nil, []string{"OS_DEFAULT__HOST=h1", "OS_DEFAULT__STATE_PATH=" + t.TempDir()}, io.Discard, io.Discard)
}
