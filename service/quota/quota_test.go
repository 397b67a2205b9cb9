package quota_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/go-cmp/cmp"
	"github.com/jmoiron/sqlx"
	"go.uber.org/goleak"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/quota"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(processVar); url != "" {
		if err := runProcess(context.Background(), url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

var migrations = []db.Migrations{quota.Migrations}

// store is a Store whose methods each have a transaction of their own.
type store struct {
	*quota.Store

	d *sqlx.DB
}

func newStore(d *sqlx.DB) *store {
	return &store{quota.New(quota.Config{DB: d, Limits: map[string]int64{"disks": 3, "gigabytes": 100, "free": quota.Unlimited}}), d}
}

func (s *store) claim(ctx context.Context, consumer, project string, disks, gigabytes int64) error {
	c := quota.Claim{Consumer: consumer, Project: project, Amounts: map[string]int64{"disks": disks, "gigabytes": gigabytes}}
	return db.Tx(ctx, s.d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Reserve(ctx, tx, c) })
}

func (s *store) release(ctx context.Context, consumer string) error {
	return db.Tx(ctx, s.d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Release(ctx, tx, consumer) })
}

// wantUsage compares the usage of disks and gigabytes, as "used/limit".
func (s *store) wantUsage(t *testing.T, project, disks, gigabytes string) {
	t.Helper()
	list, err := s.Usage(t.Context(), project)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, u := range list {
		got[u.Class] = fmt.Sprintf("%d/%d", u.Used, u.Limit)
	}
	if diff := cmp.Diff(map[string]string{"disks": disks, "gigabytes": gigabytes, "free": "0/-1"}, got); diff != "" {
		t.Errorf("usage of %s (-want +got):\n%s", project, diff)
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestSeveralClaims: several claims are made together or not at all, and the error has the figures of all classes that have no room.
func TestSeveralClaims(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		s := newStore(d)
		reserve := func(claims ...quota.Claim) error {
			return db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Reserve(ctx, tx, claims...) })
		}
		of := func(consumer, project string, disks, gigabytes int64) quota.Claim {
			return quota.Claim{Consumer: consumer, Project: project, Amounts: map[string]int64{"disks": disks, "gigabytes": gigabytes}}
		}
		noError(t, reserve())
		noError(t, reserve(of("a", "p", 1, 10), of("b", "p", 1, 20)))
		s.wantUsage(t, "p", "2/3", "30/100")
		noError(t, reserve(of("b", "p", 1, 30), of("c", "p", 1, 10))) // the claim of b is replaced
		s.wantUsage(t, "p", "3/3", "50/100")
		err := reserve(of("d", "p", 1, 30), of("e", "p", 1, 30))
		var f *fault.Error
		if !errors.Is(err, quota.ErrExceeded) || !errors.As(err, &f) {
			t.Fatal(err)
		}
		want := map[string]string{"class": "disks, gigabytes", "requested": "2, 60", "used": "3, 50", "limit": "3, 100"}
		if diff := cmp.Diff(want, f.Meta); diff != "" {
			t.Errorf("Meta (-want +got):\n%s", diff)
		}
		for name, claims := range map[string][]quota.Claim{
			"two projects": {of("f", "p", 0, 1), of("g", "q", 0, 1)}, "one consumer twice": {of("f", "p", 0, 1), of("f", "p", 0, 1)},
		} {
			if err := reserve(claims...); !errors.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		s.wantUsage(t, "p", "3/3", "50/100")
	})
}

// TestQuota: claims are accepted up to the limit, and a consumer's claim counts once. Release ends a claim.
func TestQuota(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx, s := t.Context(), newStore(d)
		s.wantUsage(t, "p", "0/3", "0/100")
		noError(t, s.claim(ctx, "a", "p", 1, 60))
		noError(t, s.claim(ctx, "a", "p", 1, 60)) // a retry
		s.wantUsage(t, "p", "1/3", "60/100")

		err := s.claim(ctx, "b", "p", 1, 41)
		var f *fault.Error
		if !errors.Is(err, quota.ErrExceeded) || !errors.As(err, &f) {
			t.Fatalf("claim above the limit: %v", err)
		}
		want := map[string]string{"class": "gigabytes", "requested": "41", "used": "60", "limit": "100"}
		if diff := cmp.Diff(want, f.Meta); diff != "" {
			t.Errorf("Meta (-want +got):\n%s", diff)
		}
		if want := "Quota exceeded for gigabytes: Requested 41, but already used 60 of 100 gigabytes"; fault.UserMessage(err) != want {
			t.Errorf("text %q, want %q", fault.UserMessage(err), want)
		}
		s.wantUsage(t, "p", "1/3", "60/100")      // nothing of the refused claim
		noError(t, s.claim(ctx, "b", "q", 1, 41)) // another project

		noError(t, s.claim(ctx, "a", "p", 1, 100)) // grows to the limit
		if err := s.claim(ctx, "a", "p", 1, 101); !errors.Is(err, quota.ErrExceeded) {
			t.Errorf("grows above the limit: %v", err)
		}
		noError(t, s.claim(ctx, "a", "p", 2, 10)) // one class grows, the other one shrinks
		s.wantUsage(t, "p", "2/3", "10/100")

		noError(t, s.release(ctx, "a"))
		noError(t, s.release(ctx, "a"))
		noError(t, s.release(ctx, "unknown"))
		s.wantUsage(t, "p", "0/3", "0/100")

		noError(t, s.claim(ctx, "r1", "p", 1, 1))
		noError(t, s.claim(ctx, "r3", "p", 1, 4))
		s.wantUsage(t, "p", "2/3", "5/100")

		// Limits of a project.
		limit := int64(1)
		noError(t, s.SetLimit(ctx, "p", "disks", &limit))
		s.wantUsage(t, "p", "2/1", "5/100")
		if err := s.claim(ctx, "c", "p", 1, 0); !errors.Is(err, quota.ErrExceeded) {
			t.Errorf("claim above a limit that was lowered: %v", err)
		}
		noError(t, s.claim(ctx, "r1", "p", 1, 50)) // no disk more
		noError(t, s.SetLimit(ctx, "p", "disks", nil))
		noError(t, s.claim(ctx, "c", "p", 1, 0))
		limit = quota.Unlimited
		noError(t, s.SetLimit(ctx, "new", "disks", &limit))
		noError(t, s.claim(ctx, "many", "new", 1_000_000, 0))
	})
}

// TestRollback: a claim whose transaction is rolled back does not count.
func TestRollback(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		s, boom := newStore(d), errors.New("boom")
		err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
			if err := s.Reserve(ctx, tx, quota.Claim{Consumer: "a", Project: "p", Amounts: map[string]int64{"disks": 1}}); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatal(err)
		}
		s.wantUsage(t, "p", "0/3", "0/100")
	})
}

// TestNewClass: a claim that was made before a class existed can get an amount of it.
func TestNewClass(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx := t.Context()
		older := &store{quota.New(quota.Config{DB: d, Limits: map[string]int64{"disks": 3}}), d}
		noError(t, db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error {
			return older.Reserve(ctx, tx, quota.Claim{Consumer: "a", Project: "p", Amounts: map[string]int64{"disks": 1}})
		}))
		s := newStore(d)
		noError(t, s.claim(ctx, "a", "p", 1, 10))
		s.wantUsage(t, "p", "1/3", "10/100")
		noError(t, older.release(ctx, "a")) // also releases the class that older does not know
		s.wantUsage(t, "p", "0/3", "0/100")
	})
}

// TestRepair: usage that was changed by hand is counted again.
func TestRepair(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx, s := t.Context(), newStore(d)
		noError(t, s.claim(ctx, "a", "p", 1, 60))
		noError(t, s.claim(ctx, "b", "q", 1, 7))
		for _, q := range []string{`UPDATE quota_usage SET used = 99 WHERE project = 'p' AND class = 'gigabytes'`, `DELETE FROM quota_usage WHERE project = 'q'`} {
			if _, err := d.ExecContext(ctx, q); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Repair(ctx)
		noError(t, err)
		want := []quota.Repaired{{Project: "p", Class: "gigabytes", Was: 99, Is: 60}, {Project: "q", Class: "disks", Is: 1}, {Project: "q", Class: "gigabytes", Is: 7}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Repair (-want +got):\n%s", diff)
		}
		if got, err := s.Repair(ctx); err != nil || len(got) != 0 {
			t.Errorf("second Repair = %v, %v", got, err)
		}
		s.wantUsage(t, "p", "1/3", "60/100")
		s.wantUsage(t, "q", "1/3", "7/100")
	})
}

// TestConsumers: the consumers are those with a claim of a class of the Store, each once.
func TestConsumers(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		s, other := newStore(d), quota.New(quota.Config{DB: d, Limits: map[string]int64{"keys": 9}})
		if got, err := s.Consumers(t.Context()); err != nil || got == nil || len(got) > 0 {
			t.Errorf("without claims: %v, %v", got, err)
		}
		for _, consumer := range []string{"b", "a", "c"} {
			if err := s.claim(t.Context(), consumer, "p", 1, 1); err != nil {
				t.Fatal(err)
			}
		}
		err := db.Tx(t.Context(), d, func(ctx context.Context, tx *sqlx.Tx) error {
			return other.Reserve(ctx, tx, quota.Claim{Consumer: "k", Project: "p", Amounts: map[string]int64{"keys": 1}})
		})
		if err := errors.Join(err, s.release(t.Context(), "b")); err != nil {
			t.Fatal(err)
		}
		got, err := s.Consumers(t.Context())
		if diff := cmp.Diff([]string{"a", "c"}, got); err != nil || diff != "" {
			t.Errorf("%v, %s", err, diff)
		}
	})
}

// TestInvalid: a malformed claim or limit is refused, and the error says what is wrong with it.
func TestInvalid(t *testing.T) {
	t.Parallel()
	dbtest.Each(t, migrations, func(t *testing.T, d *sqlx.DB) {
		ctx, s := t.Context(), newStore(d)
		noError(t, s.claim(ctx, "mine", "p", 1, 1))
		low := int64(-2)
		long := strings.Repeat("x", 65)
		reserve := func(c quota.Claim) error {
			return db.Tx(ctx, d, func(ctx context.Context, tx *sqlx.Tx) error { return s.Reserve(ctx, tx, c) })
		}
		for want, err := range map[string]error{
			"the consumer \"\" must have 1 to 64 bytes":                                 reserve(quota.Claim{Project: "p"}),
			"must have 1 to 64 bytes":                                                   reserve(quota.Claim{Consumer: long, Project: "p"}),
			"the project \"\" must have 1 to 255 bytes":                                 reserve(quota.Claim{Consumer: "a"}),
			"the amount of disks is -1, below 0":                                        reserve(quota.Claim{Consumer: "a", Project: "p", Amounts: map[string]int64{"disks": -1}}),
			"quota class \"cores\" does not exist; the classes are disks, free, gigaby": reserve(quota.Claim{Consumer: "a", Project: "p", Amounts: map[string]int64{"cores": 1}}),
			"it belongs to the project p, and not to q":                                 reserve(quota.Claim{Consumer: "mine", Project: "q"}),
			"for the project p: -2 is below -1":                                         s.SetLimit(ctx, "p", "disks", &low),
			"quota class \"core\" does not exist; the classes":                          s.SetLimit(ctx, "p", "core", nil),
			"the project \"\" must have":                                                s.SetLimit(ctx, "", "disks", nil),
		} {
			if code := fault.CodeOf(err); err == nil || code != fault.Invalid && code != fault.Conflict || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want Invalid or Conflict with %q", err, want)
			}
		}
		s.wantUsage(t, "p", "1/3", "1/100")
	})
	for name, cfg := range map[string]quota.Config{
		"no DB": {Limits: map[string]int64{"a": 1}}, "no class": {DB: new(sqlx.DB)},
		"empty class": {DB: new(sqlx.DB), Limits: map[string]int64{"": 1}}, "limit below -1": {DB: new(sqlx.DB), Limits: map[string]int64{"a": -2}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: New does not panic", name)
				}
			}()
			quota.New(cfg)
		}()
	}
}

const (
	processVar = "ARMATURE_QUOTA_PROCESS" // the URL of the database, in a process of TestLinearizable
	seedVar    = "ARMATURE_QUOTA_SEED"
	processes  = 4
)

// event is a call of a process, with its begin and end by the clock of the machine.
type event struct {
	Release    bool
	N          int64
	OK         bool
	Begin, End int64
}

// runProcess makes claims and releases, and prints them.
func runProcess(ctx context.Context, url string) error {
	d, err := db.Open(ctx, db.Config{URL: url})
	if err != nil {
		return err
	}
	defer d.Close()
	s := newStore(d)
	seed, err := strconv.ParseUint(os.Getenv(seedVar), 10, 64)
	if err != nil {
		return err
	}
	r, out := rand.New(rand.NewPCG(seed, 0)), json.NewEncoder(os.Stdout)
	do := func(e event, f func() error) (bool, error) {
		e.Begin = time.Now().UnixNano()
		err := f()
		e.End, e.OK = time.Now().UnixNano(), err == nil
		if err != nil && !errors.Is(err, quota.ErrExceeded) {
			return false, err
		}
		return e.OK, out.Encode(e)
	}
	held, size := "", int64(0) // a claim lasts until the next one is made, so that some are refused
	for i := range 25 {
		consumer, n := fmt.Sprintf("%d-%d", seed, i), 1+r.Int64N(2)
		ok, err := do(event{N: n}, func() error { return s.claim(ctx, consumer, "p", n, 0) })
		if err != nil {
			return err
		}
		if held != "" {
			if _, err := do(event{N: size, Release: true}, func() error { return s.release(ctx, held) }); err != nil {
				return err
			}
		}
		if held, size = "", 0; ok {
			held, size = consumer, n
		}
	}
	if held != "" {
		_, err := do(event{N: size, Release: true}, func() error { return s.release(ctx, held) })
		return err
	}
	return nil
}

// model is the sequential behavior: a claim succeeds if, and only if, the limit of 3 leaves room.
var model = porcupine.Model{
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		used, e, ok := state.(int64), input.(event), output.(bool)
		switch fits := used+e.N <= 3; {
		case e.Release:
			return ok, used - e.N
		case ok:
			return fits, used + e.N
		default:
			return !fits, used
		}
	},
}

// TestLinearizable: the results of claims and releases by several processes are those of some sequential order.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	dbtest.EachURL(t, func(t *testing.T, url string) {
		ctx := t.Context()
		d, err := db.Open(ctx, db.Config{URL: url})
		noError(t, err)
		defer d.Close()
		noError(t, db.Migrate(ctx, d, migrations...))
		seed := rand.Uint64() >> 8
		t.Logf("seed %d", seed)
		history := make(chan []porcupine.Operation)
		for i := range processes {
			go func() {
				list, err := processHistory(ctx, url, i, seed+uint64(i))
				if err != nil {
					t.Error(err)
				}
				history <- list
			}()
		}
		var all []porcupine.Operation
		refused := 0
		for range processes {
			for _, o := range <-history {
				all = append(all, o)
				if !o.Output.(bool) { //nolint:forcetypeassert // processHistory sets it
					refused++
				}
			}
		}
		switch got := porcupine.CheckOperationsTimeout(model, all, time.Minute); {
		case got != porcupine.Ok:
			t.Errorf("the history of %d operations is not linearizable: %s", len(all), got)
		case refused == 0 || refused == len(all):
			t.Errorf("%d of %d claims were refused: this proves nothing", refused, len(all))
		default:
			t.Logf("%d operations, %d refused: linearizable", len(all), refused)
		}
		newStore(d).wantUsage(t, "p", "0/3", "0/100")
	})
}

// processHistory runs a process, and returns its operations.
func processHistory(ctx context.Context, url string, client int, seed uint64) ([]porcupine.Operation, error) {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), processVar+"="+url, seedVar+"="+strconv.FormatUint(seed, 10))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	var list []porcupine.Operation
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, err
		}
		list = append(list, porcupine.Operation{ClientId: client, Input: e, Output: e.OK, Call: e.Begin, Return: e.End})
	}
	return list, cmd.Wait()
}
