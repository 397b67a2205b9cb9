package fake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// methods are the names by which faults name the methods of a compute.Driver.
var methods = []string{
	"spawn", "destroy", "list", "get", "power_on", "power_off", "reboot", "resources", "pause", "unpause",
	"suspend", "resume", "resize", "confirm_resize", "revert_resize", "rescue", "unrescue", "snapshot", "console_log", "console", "live_migrate",
	"attach_volume", "detach_volume", "attach_interface", "detach_interface", "metrics", "diagnostics", "events", "info",
}

// trouble is one fault of a call.
type trouble struct {
	what  string        // slow, fail, hang, crash or wrong
	after bool          // the fault comes after the effect of the call
	times int           // for how many calls; 0: for all
	hosts []string      // on which hosts; nil: on all
	took  time.Duration // for slow
	code  fault.Code    // for fail
	state compute.PowerState
}

// parseFaults reads a list of faults, separated by ";". Each fault has the words
//
//	slow DURATION | fail [CODE] | hang | crash | wrong STATE   [after] [TIMES] [on HOST[,HOST]]
func parseFaults(text string) ([]trouble, error) {
	var out []trouble
	for one := range strings.SplitSeq(text, ";") {
		words := strings.Fields(one)
		if len(words) == 0 {
			continue
		}
		t, err := parseFault(words)
		if err != nil {
			return nil, fault.New(fault.Invalid, "fault %q: %w", strings.TrimSpace(one), err)
		}
		out = append(out, t)
	}
	return out, nil
}

func parseFault(words []string) (trouble, error) {
	t := trouble{what: words[0]}
	words = words[1:]
	next := func() string {
		if len(words) == 0 {
			return ""
		}
		w := words[0]
		words = words[1:]
		return w
	}
	var err error
	switch t.what {
	case "slow":
		if t.took, err = time.ParseDuration(next()); err != nil {
			return t, errors.New("slow needs a duration, such as 2s")
		}
	case "fail":
		if len(words) > 0 {
			for c := fault.Internal; c <= fault.Canceled; c++ {
				if strings.EqualFold(c.String(), words[0]) {
					t.code = c
					next()
					break
				}
			}
		}
	case "hang", "crash":
	case "wrong":
		name := next()
		for _, s := range []compute.PowerState{compute.Running, compute.Paused, compute.Shutdown, compute.Crashed, compute.Suspended} {
			if strings.EqualFold(s.String(), name) {
				t.state = s
			}
		}
		if t.state == compute.NoState {
			return t, fmt.Errorf("%q is not a state, such as CRASHED", name)
		}
	default:
		return t, fmt.Errorf("%q is not one of slow, fail, hang, crash and wrong", t.what)
	}
	for len(words) > 0 {
		w := next()
		n, err := strconv.Atoi(w)
		switch {
		case w == "after" && t.what != "wrong" && t.what != "slow":
			t.after = true
		case w == "on" && len(words) > 0:
			t.hosts = strings.Split(next(), ",")
		case err == nil && n > 0:
			t.times = n
		default:
			return t, fmt.Errorf("%q is not expected here", w)
		}
	}
	return t, nil
}

// around runs the effect of a call, with the faults that the configuration and the server's metadata demand. id and
// metadata are empty for a call that is not about one server.
func (d *Driver) around(ctx context.Context, method, id string, metadata map[string]string, effect func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s %s: %w", method, id, err)
	}
	list := d.cfg.faults[method]
	if text := metadata["fake:"+method]; text != "" {
		more, err := parseFaults(text)
		if err != nil {
			return fault.New(fault.Invalid, "metadata fake:%s: %w", method, err)
		}
		list = slices.Concat(list, more)
	}
	for i, t := range list {
		if t.after || t.what == "wrong" {
			continue
		}
		if err := d.suffer(ctx, method, id, i, &t); err != nil {
			return err
		}
	}
	if err := effect(); err != nil {
		return err
	}
	for i, t := range list {
		if !t.after && t.what != "wrong" {
			continue
		}
		if err := d.suffer(ctx, method, id, i, &t); err != nil {
			return err
		}
	}
	return nil
}

func (d *Driver) suffer(ctx context.Context, method, id string, i int, t *trouble) error {
	if t.hosts != nil && !slices.Contains(t.hosts, d.cfg.Host) {
		return nil
	}
	if t.times > 0 && !d.countFault(fmt.Sprintf("%s-%s-%d", method, id, i), t.times) {
		return nil
	}
	switch t.what {
	case "slow":
		timer := time.NewTimer(t.took)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("%s %s: %w", method, id, ctx.Err())
		}
	case "hang":
		<-ctx.Done()
		return fmt.Errorf("%s %s: %w", method, id, ctx.Err())
	case "fail":
		return fault.New(t.code, "%s is configured to fail on %s", method, d.cfg.Host)
	case "crash":
		d.cfg.Crash()
	case "wrong":
		return d.change(id, func(s *server) error { s.Power = t.state; return nil })
	}
	return nil
}

// countFault counts a fault, also across crashes of the process, and reports whether the count is not above limit.
func (d *Driver) countFault(key string, limit int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.counts[key]
	if d.cfg.Dir != "" {
		raw, _ := os.ReadFile(filepath.Join(d.cfg.Dir, counts, key)) // no file means 0
		n, _ = strconv.Atoi(string(raw))
	}
	if n >= limit {
		return false
	}
	d.counts[key] = n + 1
	if d.cfg.Dir != "" {
		_ = os.WriteFile(filepath.Join(d.cfg.Dir, counts, key), []byte(strconv.Itoa(n+1)), 0o600)
	}
	return true
}

// forget drops the counts of a server's faults.
func (d *Driver) forget(id string) {
	for key := range d.counts {
		if strings.Contains(key, "-"+id+"-") {
			delete(d.counts, key)
		}
	}
	if d.cfg.Dir != "" {
		files, _ := filepath.Glob(filepath.Join(d.cfg.Dir, counts, "*-"+id+"-*"))
		for _, f := range files {
			_ = os.Remove(f)
		}
	}
}
