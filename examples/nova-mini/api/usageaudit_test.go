package api_test

import (
	"encoding/json"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cmpdiff "github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/api"
)

// auditLog is a log of the audits of usage, as in a reply.
type auditLog struct {
	HostsNotRun []string `json:"hosts_not_run"`
	Hosts       int      `json:"num_hosts"`
	Done        int      `json:"num_hosts_done"`
	NotRun      int      `json:"num_hosts_not_run"`
	Running     int      `json:"num_hosts_running"`
	Status      string   `json:"overall_status"`
	Begin       string   `json:"period_beginning"`
	End         string   `json:"period_ending"`
	Errors      int      `json:"total_errors"`
	Instances   int      `json:"total_instances"`
}

// audits returns the log before a time. Before an empty time: the last log.
func (c *cloud) audits(before string) auditLog {
	c.Helper()
	path, name := "/os-instance_usage_audit_log", "instance_usage_audit_logs"
	if before != "" {
		path, name = path+"/"+url.PathEscape(before), "instance_usage_audit_log"
	}
	var got map[string]auditLog
	if err := json.Unmarshal([]byte(c.want(200, "2.1", "admin", "GET", path, "")), &got); err != nil || len(got) != 1 {
		c.Fatalf("%s: %v, %v", path, got, err)
	}
	return got[name]
}

// TestUsageAudits: the log of the audits of usage is that of a Nova that runs no audits: each compute host is there, and none has run. The log has Nova's period, names and texts.
func TestUsageAudits(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		if got := c.audits(""); got.Status != "ALL hosts done. 0 errors." || got.Hosts != 0 || got.HostsNotRun == nil {
			t.Errorf("without hosts: %+v", got)
		}
		c.addHosts("host2", "host1") // and a conductor, which has no audits
		if err := c.store.SetDisabled(c.Context(), "nova-compute", "host2", true, "x"); err != nil {
			t.Fatal(err)
		}
		want := auditLog{HostsNotRun: []string{"host1", "host2"}, Hosts: 2, NotRun: 2, Status: "0 of 2 hosts done. 0 errors.", Begin: "2012-05-01 00:00:00", End: "2012-06-01 00:00:00"}
		if diff := cmpdiff.Diff(want, c.audits("2012-06-20 10:00:00")); diff != "" {
			t.Errorf("the log (-want +got): %s", diff)
		}
		now, err := c.store.Now(c.Context())
		if err != nil {
			t.Fatal(err)
		}
		month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
		want.Begin, want.End = month.AddDate(0, -1, 0).Format(time.DateTime), month.Format(time.DateTime)
		if diff := cmpdiff.Diff(want, c.audits("")); diff != "" {
			t.Errorf("the last log (-want +got): %s", diff)
		}
		for _, before := range []string{"invalid_time", "2012-13-01 00:00:00", "2012-02-30 00:00:00", "2012-01-01", "2012-01-01T00:00:00", "2012-01-01 00:00:60", "2012-01-01 00:00:00.1234567", "2012-01-01 00:00:00.", "0000-05-01 00:00:00", "0001-01-01 00:00:00"} {
			if reply := c.want(400, "2.1", "admin", "GET", "/os-instance_usage_audit_log/"+url.PathEscape(before), ""); !strings.Contains(reply, "Invalid timestamp for date "+before+`"`) {
				t.Errorf("%s: %s", before, reply)
			}
		}
		for _, path := range []string{"/os-instance_usage_audit_log", "/os-instance_usage_audit_log/2012-07-05%2010:00:00"} {
			c.want(403, "2.1", "member", "GET", path, "")
			c.want(401, "2.1", "unknown-token", "GET", path, "")
			c.want(200, "2.101", "admin", "GET", path+"?x=1", "")
			c.want(400, "2.102", "admin", "GET", path+"?x=1", "")
			c.want(200, "2.104", "admin", "GET", path, "")
		}
		c.want(403, "2.1", "member", "GET", "/os-instance_usage_audit_log/invalid_time", "")
		for _, one := range []struct{ name, path string }{{"index", ""}, {"show", "/2012-07-05%2010:00:00"}} {
			file := "os-instance-usage-audit-log/inst-usage-audit-log-" + one.name + "-get-resp.json"
			of := sample(t, file)
			reply := c.want(200, "2.1", "admin", "GET", "/os-instance_usage_audit_log"+one.path, "")
			var fields map[string]map[string]json.RawMessage
			if err := json.Unmarshal([]byte(of), &fields); err != nil {
				t.Fatal(err)
			}
			for name := range fields {
				fields[name]["log"] = json.RawMessage(`{}`) // the sample has hosts with audits
			}
			raw, err := json.Marshal(fields)
			if err != nil {
				t.Fatal(err)
			}
			knowText(filepath.Join(samplesRoot, file), string(raw))
			c.sameShape(one.name, string(raw), reply)
		}
	})
}

// TestAuditPeriods: the option instance_usage_audit_period has Nova's periods.
func TestAuditPeriods(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ period, before, begin, end string }{
		{"month", "2012-07-05 10:00:00", "2012-06-01 00:00:00", "2012-07-01 00:00:00"},
		{"month", "2012-07-01 00:00:00", "2012-05-01 00:00:00", "2012-06-01 00:00:00"}, // a period must have ended before the time
		{"month", "2012-07-01 00:00:00.000001", "2012-06-01 00:00:00", "2012-07-01 00:00:00"},
		{"month", "2012-1-5 1:2:3", "2011-12-01 00:00:00", "2012-01-01 00:00:00"},
		{"month", "2012-01-01 00:00:00", "2011-11-01 00:00:00", "2011-12-01 00:00:00"},
		{"month@15", "2012-03-10 00:00:00", "2012-01-15 00:00:00", "2012-02-15 00:00:00"},
		{"month@0", "2012-03-10 00:00:00", "2012-02-01 00:00:00", "2012-03-01 00:00:00"},
		{"year", "2012-07-05 10:00:00", "2011-01-01 00:00:00", "2012-01-01 00:00:00"},
		{"year@8", "2012-07-05 10:00:00", "2010-08-01 00:00:00", "2011-08-01 00:00:00"},
		{"day", "2012-03-01 10:00:00", "2012-02-29 00:00:00", "2012-03-01 00:00:00"},
		{"day@18", "2012-03-01 10:00:00", "2012-02-28 18:00:00", "2012-02-29 18:00:00"},
		{"hour", "2012-03-01 00:30:00", "2012-02-29 23:00:00", "2012-03-01 00:00:00"},
		{"hour@45", "2012-03-01 00:30:00", "2012-02-29 22:45:00", "2012-02-29 23:45:00"},
	} {
		p, err := api.ParseAuditPeriod(tt.period)
		if err != nil {
			t.Fatal(err)
		}
		eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
			if got := c.audits(tt.before); got.Begin != tt.begin || got.End != tt.end {
				t.Errorf("%s before %s: %s to %s, want %s to %s", tt.period, tt.before, got.Begin, got.End, tt.begin, tt.end)
			}
		}, func(cfg *api.Config) { cfg.AuditPeriod = p })
	}
	for _, bad := range []string{"", "week", "month@", "month@-1", "month@29", "hour@60", "day@24", "year@13", "month@99999999999999999999"} {
		if _, err := api.ParseAuditPeriod(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
