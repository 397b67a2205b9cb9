package scheduler

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Reported is a host with the time of its report.
type Reported interface {
	Host
	// ReportedAt returns the time at which the host reported this state. A Fleet keeps the latest report of a host.
	ReportedAt() time.Time
}

// Fleet keeps the last report of each host in memory. Readers take no lock: a list that [Fleet.Hosts] has returned
// never changes, because each change makes a new list. Hosts in a Fleet must not be changed either: an update replaces a
// host with a new H. The zero value is ready to use. A Fleet is safe for concurrent use.
type Fleet[H Reported] struct {
	mu    sync.Mutex // held by writers
	hosts atomic.Pointer[[]H]
}

// Hosts returns all hosts sorted by name. The list is shared and must not be changed.
func (f *Fleet[H]) Hosts() []H {
	if p := f.hosts.Load(); p != nil {
		return *p
	}
	return nil
}

// findHost returns the index of a host in a sorted list.
func findHost[H Host](hosts []H, name string) (int, bool) {
	return slices.BinarySearchFunc(hosts, name, func(h H, name string) int { return cmp.Compare(h.Name(), name) })
}

// Report adds reports of new and of known hosts. It drops a report that is older than the known report of the same host,
// and returns the number of dropped reports. A call with many reports costs about as much as a call with one, because
// each call copies the list.
func (f *Fleet[H]) Report(hosts ...H) (late int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.Hosts()
	list := slices.Clone(old)
	var more []H
	for _, h := range hosts {
		i, ok := findHost(list, h.Name())
		switch {
		case !ok:
			more = append(more, h)
		case h.ReportedAt().Before(list[i].ReportedAt()):
			late++
		default:
			list[i] = h
		}
	}
	if len(more) > 0 {
		// Of several reports of a new host, only the latest is kept.
		slices.SortStableFunc(more, func(a, b H) int {
			return cmp.Or(cmp.Compare(a.Name(), b.Name()), a.ReportedAt().Compare(b.ReportedAt()))
		})
		before := len(more)
		slices.Reverse(more)
		more = slices.CompactFunc(more, func(a, b H) bool { return a.Name() == b.Name() })
		late += before - len(more)
		list = append(list, more...)
		slices.SortFunc(list, func(a, b H) int { return cmp.Compare(a.Name(), b.Name()) })
	}
	f.hosts.Store(&list)
	return late
}

// Update replaces a host with the result of the function change, for example after a claim and before the host's next
// report. It returns false if the host is not known. The function change must return a new H, must not change its argument,
// and must not call the Fleet.
func (f *Fleet[H]) Update(name string, change func(H) H) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := slices.Clone(f.Hosts())
	i, ok := findHost(list, name)
	if !ok {
		return false
	}
	list[i] = change(list[i])
	f.hosts.Store(&list)
	return true
}

// Forget removes the hosts whose last report is older than maxAge and returns their names. Call it regularly, so that
// hosts that no longer exist do not stay for ever.
func (f *Fleet[H]) Forget(maxAge time.Duration) (names []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := time.Now().Add(-maxAge)
	var list []H
	for _, h := range f.Hosts() {
		if h.ReportedAt().Before(end) {
			names = append(names, h.Name())
		} else {
			list = append(list, h)
		}
	}
	if len(names) > 0 {
		f.hosts.Store(&list)
	}
	return names
}

// Age returns the ages of the newest and of the oldest report. Both are 0 if the Fleet is empty.
func (f *Fleet[H]) Age() (newest, oldest time.Duration) {
	for i, h := range f.Hosts() {
		age := time.Since(h.ReportedAt())
		if i == 0 {
			newest = age
		}
		newest, oldest = min(newest, age), max(oldest, age)
	}
	return newest, oldest
}

// Fresh returns the filter "stale", which rejects hosts whose last report is older than maxAge at the time of Prepare.
func Fresh[R any, H Reported](maxAge time.Duration) Filter[R, H] { return fresh[R, H]{maxAge} }

type fresh[R any, H Reported] struct{ maxAge time.Duration }

func (fresh[R, H]) Name() string { return "stale" }

func (f fresh[R, H]) Prepare(context.Context, R, []H) (func(H) Verdict, error) {
	now := time.Now()
	return func(h H) Verdict {
		if age := now.Sub(h.ReportedAt()); age > f.maxAge {
			return RejectNumbers("the last report is %d s old, at most %d s are allowed", int64(age/time.Second), int64(f.maxAge/time.Second))
		}
		return Pass
	}, nil
}
