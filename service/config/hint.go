package config

import (
	"cmp"
	"maps"
	"slices"
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
		return cmp.Or(cmp.Compare(distance(name, a), distance(name, b)), cmp.Compare(a, b))
	})
	if len(nearest) == 0 {
		return ""
	}
	return "; the nearest is " + nearest[0]
}

// distance is the Levenshtein distance, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
