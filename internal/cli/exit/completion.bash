# Completion of NAME for bash. It reads the line itself: nothing that stands on
# it is evaluated, no redirection is made, and no other package is needed.

__NAME_words() { # words, open (a quote that is not closed) from $1
  local line=$1 i c word='' begun=
  words=() open=
  for ((i = 0; i < ${#line}; i++)); do
    c=${line:i:1}
    if [[ -n $open ]]; then
      if [[ $c == "$open" ]]; then
        open=
      elif [[ $c == \\ && $open == '"' && ${line:i+1:1} == [\"\\\$\`] ]]; then
        ((++i)); word+=${line:i:1}
      else
        word+=$c
      fi
      continue
    fi
    case $c in
      "'" | '"') open=$c begun=1 ;;
      \\) ((++i)); word+=${line:i:1} begun=1 ;;
      [[:space:]]) [[ -n $begun ]] && words+=("$word"); word='' begun= ;;
      [\;\|\&\(\)]) words=() word='' begun= ;; # another command begins
      *) word+=$c begun=1 ;;
    esac
  done
  words+=("$word")
}

__NAME_complete() {
  local words open cur prefix='' skip='' word line token
  __NAME_words "${COMP_LINE:0:COMP_POINT}"
  COMPREPLY=()
  cur=${words[${#words[@]}-1]}
  unset "words[${#words[@]}-1]"
  local asked=()
  for word in "${words[@]}"; do
    if [[ -n $skip ]]; then # the file of a redirection
      skip=
    elif [[ $word =~ ^[0-9]*(\<|\>)+$ ]]; then
      skip=1
    elif [[ ! $word =~ ^[0-9]*[\<\>] ]]; then
      asked+=("$word")
    fi
  done
  [[ -n $skip || $cur == [0-9\<\>]*[\<\>]* || ${#asked[@]} -eq 0 ]] && return
  if [[ $cur == -*=* ]]; then
    asked+=("${cur%%=*}")
    cur=${cur#*=}
  fi
  local last=${asked[${#asked[@]}-1]}
  if [[ $last =~ ^--?(id|status)$ && $cur == *,* ]]; then
    prefix=${cur%,*},
    cur=${cur##*,}
  fi
  [[ $cur == -* ]] && asked+=("$cur")
  while IFS= read -r line; do
    token=${line%%:*}
    [[ $cur == -[!-]* && $token == --* ]] && token=${token#-}
    [[ -n $token && $token == "$cur"* ]] || continue
    [[ -z $cur && $last =~ ^--?vm$ && $token != /* ]] && continue # names once one is begun
    if [[ -n $open ]]; then
      COMPREPLY+=("$prefix$token")
    else
      word=$(printf '%q' "$prefix$token")
      COMPREPLY+=("${word//\\,/,}")
    fi
  done < <("${asked[@]}" --generate-shell-completion 2>/dev/null)
}

complete -o bashdefault -o default -F __NAME_complete NAME
