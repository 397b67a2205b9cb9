package e2e_test

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// wordsOf matches the words of a command in a shell.
var wordsOf = regexp.MustCompile(`'[^']*'|\$\([^)]*\)|\S+`)

// serverFilters has the options of server list that choose servers: for each option, whether the list has a server. The option has a value unless it is in noValue.
var serverFilters = map[string]func(m *member, s map[string]any, value string) bool{
	"--name": func(_ *member, s map[string]any, value string) bool {
		return regexp.MustCompile(value).MatchString(fmt.Sprint(s["name"]))
	},
	"--status": func(_ *member, s map[string]any, value string) bool { return s["status"] == value },
	"--flavor": func(_ *member, s map[string]any, value string) bool {
		return object(s["flavor"])["original_name"] == value
	},
	"--image": func(m *member, s map[string]any, value string) bool {
		return object(s["image"])["id"] == m.imageNamed(value)
	},
	"--host": func(_ *member, s map[string]any, value string) bool {
		return s["OS-EXT-SRV-ATTR:host"] == value
	},
	"--project": func(m *member, s map[string]any, value string) bool { return s["tenant_id"] == m.ids[value] },
	"--user":    func(m *member, s map[string]any, value string) bool { return s["user_id"] == m.ids[value] },
	"--deleted": func(_ *member, s map[string]any, _ string) bool {
		return s["status"] == "DELETED" || s["status"] == "SOFT_DELETED"
	},
	"--ip": func(_ *member, s map[string]any, value string) bool {
		for _, list := range object(s["addresses"]) {
			for _, one := range listOf(list) {
				if regexp.MustCompile(value).MatchString(fmt.Sprint(object(one)["addr"])) {
					return true
				}
			}
		}
		return false
	},
	"--changes-since": func(m *member, s map[string]any, value string) bool {
		return fmt.Sprint(s["updated"]) >= m.shownValue(value)
	},
	"--changes-before": func(m *member, s map[string]any, value string) bool {
		return fmt.Sprint(s["updated"]) <= m.shownValue(value)
	},
	"--tags": func(_ *member, s map[string]any, value string) bool {
		return slices.Contains(listOf(s["tags"]), any(value))
	},
	"--not-tags": func(_ *member, s map[string]any, value string) bool {
		return !slices.Contains(listOf(s["tags"]), any(value))
	},
	"--locked":   func(_ *member, s map[string]any, _ string) bool { return s["locked"] == true },
	"--unlocked": func(_ *member, s map[string]any, _ string) bool { return s["locked"] == false },
}

// noValue has the options of server list without a value.
var noValue = strings.Fields("--deleted --locked --unlocked --all-projects --long -n --sort-ascending")

// shownValue returns the value that a command within a command prints of a server, such as $(openstack server show -f value -c updated first).
func (m *member) shownValue(inner string) string {
	m.Helper()
	words := strings.Fields(strings.Trim(inner, "$()"))
	name, column := words[len(words)-1], words[len(words)-2]
	return fmt.Sprint(m.shown("servers/"+m.idNamed(name), "server", column))
}

// compareServers compares a list of servers with the servers of the API that the options of the command choose, in the same order. The test itself
// applies the options, to a list of the API without filters.
func (m *member) compareServers(command string, rows []map[string]any) {
	m.Helper()
	options := map[string]string{}
	words := wordsOf.FindAllString(strings.TrimPrefix(command, "server list"), -1)
	for i := 0; i < len(words); i++ {
		name := words[i]
		options[name] = ""
		if !slices.Contains(noValue, name) {
			i++
			options[name] = words[i]
		}
	}
	query := "servers/detail?limit=1000"
	for _, name := range []string{"--all-projects", "--project"} {
		if _, ok := options[name]; ok {
			query = "servers/detail?all_tenants=1"
		}
	}
	list := listOf(m.shown(query, "servers"))
	for _, name := range []string{"--deleted", "--changes-since", "--changes-before"} {
		if _, ok := options[name]; ok {
			list = append(list, listOf(m.shown(query+"&deleted=true", "servers"))...)
			break
		}
	}
	list = m.chosen(list, options)
	if _, ok := options["--sort-column"]; ok {
		slices.SortStableFunc(list, func(a, b any) int { return cmp.Compare(fmt.Sprint(object(a)["name"]), fmt.Sprint(object(b)["name"])) })
	}
	if len(rows) != len(list) {
		m.Errorf("%s: %v, want %v", command, rows, list)
		return
	}
	for i := range rows {
		if rows[i]["id"] != object(list[i])["id"] {
			m.Errorf("%s: server %d is %v, want %v", command, i, rows[i], list[i])
		}
	}
	m.compareRows(command, rows, list, true)
}

// chosen returns those servers of a list of the API that the options of a command choose.
func (m *member) chosen(list []any, options map[string]string) []any {
	m.Helper()
	if m.narrowed == nil {
		m.narrowed = map[string]bool{}
	}
	for name, value := range options {
		before := len(list)
		switch {
		case serverFilters[name] != nil:
			list = slices.DeleteFunc(slices.Clone(list), func(s any) bool { return !serverFilters[name](m, object(s), strings.Trim(value, "'")) })
		case name == "--marker":
			list = list[1+slices.IndexFunc(list, func(s any) bool { return object(s)["name"] == value }):]
		case name == "--limit" && value == "1":
			list = list[:1]
		case slices.Contains(noValue, name) || name == "--sort-column" && value == "Name":
			continue // not a filter
		default:
			m.Errorf("the test does not know the option %s %s", name, value)
		}
		m.narrowed[name] = m.narrowed[name] || len(list) < before
	}
	return list
}

// checkFilters fails the test if a filter of the commands has left out no server in any list: then a filter without effect would pass.
func (m *member) checkFilters() {
	m.Helper()
	if len(m.narrowed) < 10 {
		m.Errorf("the commands have only the filters %v", m.narrowed)
	}
	for name, ok := range m.narrowed {
		if !ok {
			m.Errorf("server list %s has left out no server", name)
		}
	}
}
