package config

import (
	"cmp"
	"maps"
	"slices"

	"github.com/armature-go/armature/service/internal/text"
)

// hint names where the option could have been meant to stand.
func (l *loader) hint(section, key string) string {
	for _, other := range slices.Sorted(maps.Keys(l.options)) {
		if other != section && l.options[other][key] != nil {
			return "; it belongs to [" + other + "]"
		}
	}
	return suggest(key, maps.Keys(l.options[section]))
}

// suggest names the known name that is nearest to one that is not known.
func suggest(name string, known func(yield func(string) bool)) string {
	nearest := slices.SortedFunc(known, func(a, b string) int {
		return cmp.Or(cmp.Compare(text.Distance(name, a), text.Distance(name, b)), cmp.Compare(a, b))
	})
	if len(nearest) == 0 {
		return ""
	}
	return "; the nearest is " + nearest[0]
}
